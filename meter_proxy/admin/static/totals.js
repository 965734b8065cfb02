// What was used today, in 7 and in 30 days; and which of them the tables show.

import { compact, dollars, utcDay, whole } from "./format.js";
import { element, setAttribute, setText } from "./dom.js";

export const PERIODS = [
  { days: 1, name: "Today" },
  { days: 7, name: "7 days" },
  { days: 30, name: "30 days" },
];
const FIELDS = ["requests", "input_tokens", "output_tokens", "cost_nano_usd"];

/** The first UTC day of a period that ends today. */
export const firstDay = (days, now) => utcDay(now, days - 1);

/** Sums of rows with a `day`, from `first` on. */
export function sumSince(rows, first) {
  const sum = Object.fromEntries(FIELDS.map((field) => [field, 0]));
  for (const row of rows) {
    if (row.day < first) continue;
    for (const field of FIELDS) sum[field] += row[field];
  }
  return sum;
}

/** The tiles. `chosen(period)` is called when the reader takes another one. */
export class Totals {
  constructor(fieldset, chosen) {
    this.period = PERIODS[1];
    this.tiles = PERIODS.map((period) => {
      const input = element("input", { type: "radio", name: "period", value: period.days, checked: period === this.period });
      const tile = { period, tokens: element("strong"), cost: element("span", { class: "cost" }), rest: element("span", { class: "note" }) };
      input.addEventListener("change", () => {
        this.period = period;
        chosen(period);
      });
      const name = element("span", { class: "name", text: period.name });
      fieldset.append(element("label", { class: "tile" }, input, element("span", { class: "line" }, name, tile.cost), tile.tokens, tile.rest));
      return tile;
    });
    this.show([], Date.now());
  }

  /** `rows`: {day, requests, input_tokens, output_tokens, cost_nano_usd} */
  show(rows, now) {
    for (const tile of this.tiles) {
      const sum = sumSince(rows, firstDay(tile.period.days, now));
      const tokens = sum.input_tokens + sum.output_tokens;
      setText(tile.tokens, `${compact(tokens)} tokens`);
      setAttribute(tile.tokens, "title", `${whole(sum.input_tokens)} in, ${whole(sum.output_tokens)} out`);
      setText(tile.cost, dollars(sum.cost_nano_usd / 1e9));
      setText(tile.rest, `${compact(sum.input_tokens)} in · ${compact(sum.output_tokens)} out · ${compact(sum.requests)} request${sum.requests === 1 ? "" : "s"}`);
    }
  }
}

/** The tile beside them: what is going on now. */
export class Now {
  constructor(fieldset) {
    this.streams = element("strong", { text: "– in flight" });
    this.rest = element("span", { class: "note" });
    const name = element("span", { class: "name" }, element("span", { class: "pulse", "aria-hidden": "true" }), "Now");
    fieldset.append(element("div", { class: "tile now" }, element("span", { class: "line" }, name), this.streams, this.rest));
  }

  show(streams, text) {
    setText(this.streams, `${whole(streams)} in flight`);
    setText(this.rest, text);
  }
}
