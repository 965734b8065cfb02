// Who used how much: one row a key or a model, with its share as a bar behind it.

import { compact, dollars, exactDollars, whole } from "./format.js";
import { element, Pager, Rows, setAttribute, setText } from "./dom.js";

/** `column`: "key" or "model". `pick(name)`: the reader asks for one only. `save()`: all rows, as a file. */
export class Shares {
  constructor(container, column, { pick, save, count = 7 } = {}) {
    this.count = count;
    this.items = [];
    const head = element("thead", {}, element("tr", {},
      element("th", { scope: "col", text: column === "key" ? "Key" : "Model" }),
      element("th", { scope: "col", class: "number wide", text: "Requests" }),
      element("th", { scope: "col", class: "number wide", text: "Input" }),
      element("th", { scope: "col", class: "number", text: "Output" }),
      element("th", { scope: "col", class: "number", text: "Cost" })));
    const body = element("tbody");
    const table = element("table", { class: "shares" }, head, body);
    this.rows = new Rows(container, count, () => shareRow(column, pick), { list: table, into: body });
    this.pager = new Pager(container, count, (offset) => this.page(offset), whole);
    if (save) {
      this.save = element("button", { type: "button", class: "quiet", text: "CSV", title: "All rows as a CSV file", onclick: save });
      this.pager.bar.append(this.save);
    }
  }

  /** The rows, largest first; `total`: how many there are beside those. */
  show(items, total, nothing) {
    this.items = items;
    this.total = total;
    this.nothing = nothing;
    this.page(this.pager.offset < items.length ? this.pager.offset : 0);
  }

  page(offset) {
    const shown = this.items.slice(offset, offset + this.count);
    // As the rows are sorted: by cost where something costs, else by tokens.
    const weight = this.items.some((item) => item.cost_nano_usd) ? (item) => item.cost_nano_usd : tokens;
    const most = Math.max(1, ...this.items.map(weight));
    this.rows.show(shown.map((item) => ({ item, share: weight(item) / most })), this.nothing);
    this.pager.show(offset, shown.length, this.items.length);
    if (this.total > this.items.length) setText(this.pager.where, `${this.pager.where.textContent} (top of ${whole(this.total)})`);
  }
}

const tokens = (item) => item.input_tokens + item.output_tokens;

function shareRow(column, pick) {
  let name = "";
  const label = pick
    ? element("button", { type: "button", class: "name link", onclick: () => pick(name) })
    : element("span", { class: "name" });
  const bar = element("span", { class: "share-bar", "aria-hidden": "true" });
  const cells = ["number wide", "number wide", "number", "number"].map((kind) => element("td", { class: kind }));
  const node = element("tr", {}, element("th", { scope: "row" }, element("div", { class: "clip" }, label, bar)), ...cells);
  function show({ item, share }) {
    name = item[column];
    setText(label, name);
    setAttribute(label, "title", name);
    bar.style.width = `${100 * share}%`;
    const [requests, input, output, cost] = cells;
    for (const [cell, number] of [[requests, item.requests], [input, item.input_tokens], [output, item.output_tokens]]) {
      setText(cell, compact(number));
      setAttribute(cell, "title", whole(number));
    }
    setText(cost, dollars(item.cost_nano_usd / 1e9));
    setAttribute(cost, "title", exactDollars(item.cost_nano_usd));
  }
  return { node, show };
}
