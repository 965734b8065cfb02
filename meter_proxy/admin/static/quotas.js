// Quota bars: how full each rule is, and when it is empty again.

import { amount, countdown, unitPer, whole } from "./format.js";
import { element, Pager, Rows, setAttribute, setText, twoLengths } from "./dom.js";

export const QUOTA_ROWS = 5;
const WARN_AT = 0.8; // where the rule says nothing

/** `pick(key)`: the reader asks for one key only; without it names are plain text. `turn(offset)`: another page. */
export class Quotas {
  constructor(container, { pick, turn } = {}) {
    this.shown = [];
    this.rows = new Rows(container, QUOTA_ROWS, () => quotaRow(pick));
    this.pager = new Pager(container, QUOTA_ROWS, turn ?? ((offset) => this.show(this.all, this.all.length, offset)), whole);
    setInterval(() => this.tick(), 1000);
  }

  /** `quotas` of the page at `offset`; of `total`. Without a `turn`, `quotas` are all there are. */
  show(quotas, total, offset = 0, nothing = "No rule limits anybody.") {
    this.all = quotas;
    this.shown = quotas.length > QUOTA_ROWS ? quotas.slice(offset, offset + QUOTA_ROWS) : quotas;
    this.rows.show(this.shown, nothing);
    this.pager.show(offset, this.shown.length, total);
  }

  tick() {
    this.shown.forEach((quota, index) => this.rows.rows[index].tick(quota));
  }
}

/** How full, from 0 on; over 1 is possible. */
export const fullness = (quota) => {
  const limit = Number(quota.limit);
  return limit > 0 ? (Number(quota.used) + Number(quota.reserved)) / limit : 1;
};

function level(quota) {
  const full = fullness(quota);
  if (full >= 1) return "full";
  return quota.warning || full >= (quota.warn_at ?? WARN_AT) ? "warn" : "good";
}

function quotaRow(pick) {
  let item = null;
  const key = pick
    ? element("button", { type: "button", class: "name link", onclick: () => pick(item.key) })
    : element("span", { class: "name" });
  const rule = element("span", { class: "rule" });
  const share = element("span", { class: "share" });
  const meter = element("div", { class: "meter", role: "meter", "aria-valuemin": "0", "aria-valuemax": "100" });
  const figures = twoLengths({ class: "figures" });
  const resets = element("span", { class: "resets" });
  const node = element("li", { class: "quota" },
    element("div", { class: "line" }, key, rule, share), meter, element("div", { class: "line note" }, figures.node, resets));
  function tick(quota) {
    const left = quota.resets_at ? Date.parse(quota.resets_at) - Date.now() : null;
    setText(resets, left === null ? (quota.unit === "concurrent" ? "" : "never resets") : `resets in ${countdown(left)}`);
  }
  function show(quota) {
    item = quota;
    const full = fullness(quota);
    const percent = Math.floor(Math.min(full, 9.99) * 100);
    const limit = Number(quota.limit) || 1;
    const shareOf = (figure) => Math.min(100, (100 * Number(figure)) / limit);
    const onModels = quota.models ? ` on ${quota.models.join(", ")}` : "";
    setText(key, quota.key);
    setAttribute(key, "title", quota.key);
    setText(rule, quota.rule);
    setAttribute(rule, "title", quota.rule + onModels);
    setText(share, `${percent}%`);
    node.dataset.level = level(quota);
    meter.style.setProperty("--used", `${shareOf(quota.used)}%`);
    meter.style.setProperty("--held", `${Math.min(100, shareOf(quota.used) + shareOf(quota.reserved))}%`);
    setAttribute(meter, "aria-valuenow", Math.min(100, percent));
    setAttribute(meter, "aria-label", `${quota.key} ${quota.rule}`);
    const reserved = Number(quota.reserved) > 0 && quota.unit !== "concurrent" ? ` + ${amount(quota.reserved, quota.unit)} reserved` : "";
    const inUse = quota.unit === "concurrent" ? Number(quota.used) + Number(quota.reserved) : quota.used;
    const used = amount(inUse, quota.unit);
    const ofAll = ` of ${amount(quota.limit, quota.unit)} ${unitPer(quota.unit, quota.per)}`;
    figures.show(used + reserved + ofAll, used + ofAll);
    setAttribute(figures.node, "title", used + reserved + ofAll + onModels);
    tick(quota);
  }
  return { node, show, tick };
}
