// Building the page, and changing it in place: a node that stays is never moved, so nothing jumps.

/** An element; `attributes` as in HTML, plus `text`, and `on<event>` for listeners. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** A text in two lengths, the short one for narrow screens. One node each: what follows another node would move. */
export function twoLengths(attributes) {
  const long = element("span", { class: "wide" });
  const short = element("span", { class: "narrow" });
  function show(longText, shortText) {
    setText(long, longText);
    setText(short, shortText);
  }
  return { node: element("span", attributes, long, short), show };
}

/** Writes only what has changed. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/**
 * A list of a fixed number of rows: its height is the same with no row, some, or all of them.
 * `make()` builds a row: {node, show(item)}. Where there is nothing, `empty` is shown in the same place.
 */
export class Rows {
  constructor(container, count, make, { list = element("ul", { class: "rows" }), into = list } = {}) {
    this.rows = Array.from({ length: count }, () => {
      const row = make();
      row.node.classList.add("row", "blank");
      return row;
    });
    into.append(...this.rows.map((row) => row.node));
    this.empty = element("div", { class: "empty", hidden: true });
    container.append(element("div", { class: "rows-frame" }, list, this.empty));
  }

  get count() {
    return this.rows.length;
  }

  /** `nothing`: a text or a node for the case that there is no item. */
  show(items, nothing) {
    this.rows.forEach((row, index) => {
      const item = items[index];
      row.node.classList.toggle("blank", item === undefined);
      setAttribute(row.node, "aria-hidden", item === undefined ? "true" : null);
      if (item !== undefined) row.show(item);
      for (const control of row.node.querySelectorAll("button")) control.disabled = item === undefined;
    });
    if (items.length === 0) {
      if (this.empty.hidden || this.empty.textContent !== (nothing.textContent ?? nothing)) this.empty.replaceChildren(nothing);
      this.empty.hidden = false;
    } else {
      this.empty.hidden = true;
    }
  }
}

/** "1-6 of 20,000", and two buttons. `turn(offset)` is called with the first row wanted. */
export class Pager {
  constructor(container, size, turn, whole) {
    this.size = size;
    this.offset = 0;
    this.whole = whole;
    this.back = element("button", { type: "button", class: "quiet turn", text: "Back", onclick: () => turn(Math.max(0, this.offset - size)) });
    this.next = element("button", { type: "button", class: "quiet turn", text: "Next", onclick: () => turn(this.offset + size) });
    this.where = element("span", { class: "where" });
    this.bar = element("div", { class: "pager" }, this.where, this.back, this.next);
    container.append(this.bar);
  }

  show(offset, shown, total) {
    this.offset = offset;
    setText(this.where, total ? `${this.whole(offset + 1)}–${this.whole(offset + shown)} of ${this.whole(total)}` : "");
    this.bar.classList.toggle("several", total > this.size);
    this.back.disabled = offset === 0;
    this.next.disabled = offset + shown >= total;
  }
}
