// Streams while they run, and exchanges that are over.

import { clock, compact, dollars, exactDollars, rate, span, whole, words } from "./format.js";
import { element, Rows, setAttribute, setText, twoLengths } from "./dom.js";

export const LIVE_ROWS = 8;
export const RECORD_ROWS = 8;
const HOW_WE_KNOW = {
  reported: "the upstream's final usage",
  running: "the last running count of the upstream",
  tokenized: "the text, tokenized",
  counted: "one per content event",
  estimated: "bytes of text / 4",
  none: "nothing to bill",
};
const LEVEL = { completed: "good", client_disconnected: "warn", quota_cut: "warn", drained: "warn" };

/** Streams in flight, oldest first. */
export class Live {
  constructor(container, pick) {
    this.before = new Map(); // id -> what it was at the last look, for the pace
    this.rows = new Rows(container, LIVE_ROWS, () => liveRow(pick));
  }

  show(streams, nothing) {
    const seen = new Map();
    const items = streams.slice(0, LIVE_ROWS).map((stream) => {
      const last = this.before.get(stream.id);
      const since = last && stream.duration_ms > last.duration_ms ? last : { output_tokens: 0, duration_ms: 0 };
      const elapsed = stream.duration_ms - since.duration_ms;
      seen.set(stream.id, stream);
      return { ...stream, pace: elapsed > 0 ? (1000 * (stream.output_tokens - since.output_tokens)) / elapsed : 0 };
    });
    this.before = seen;
    this.rows.show(items, nothing);
  }
}

function who(pick) {
  let key = "";
  const name = element("button", { type: "button", class: "name link", onclick: () => pick(key) });
  const model = element("span", { class: "note clip" });
  function show(item) {
    key = item.key;
    setText(name, item.key);
    setAttribute(name, "title", item.account === item.key ? item.key : `${item.key} (account ${item.account})`);
    setText(model, item.model);
    setAttribute(model, "title", `${item.model}, ${words(item.operation)}`);
  }
  return { node: element("div", { class: "stack" }, name, model), show };
}

function liveRow(pick) {
  const caller = who(pick);
  const tokens = element("span");
  const input = element("span", { class: "note" });
  const lasting = element("span");
  const pace = element("span", { class: "note" });
  const node = element("li", { class: "exchange" }, caller.node,
    element("div", { class: "stack number" }, tokens, input), element("div", { class: "stack number" }, lasting, pace));
  function show(stream) {
    caller.show(stream);
    setText(tokens, `${compact(stream.output_tokens)} out`);
    setText(input, `${compact(stream.input_tokens)} in`);
    setText(lasting, span(stream.duration_ms));
    setText(pace, `${rate(stream.pace)} tokens/s`);
  }
  return { node, show };
}

/** The last records, newest first. */
export class Records {
  constructor(container, pick) {
    this.rows = new Rows(container, RECORD_ROWS, () => recordRow(pick));
  }

  show(records, nothing) {
    this.rows.show(records.slice(-RECORD_ROWS).reverse(), nothing);
  }
}

function recordRow(pick) {
  const caller = who(pick);
  const time = element("time");
  const lasted = element("span", { class: "note" });
  const tokens = element("span");
  const rest = twoLengths({ class: "note" });
  const outcome = element("span", { class: "outcome" });
  const basis = element("span", { class: "note" });
  const node = element("li", { class: "exchange record" },
    element("div", { class: "stack when" }, time, lasted), caller.node,
    element("div", { class: "stack number" }, tokens, rest.node), element("div", { class: "stack" }, outcome, basis));
  function show(record) {
    caller.show(record);
    setText(time, clock(record.time, Date.now()));
    setAttribute(time, "datetime", record.time);
    setAttribute(time, "title", `${record.time}, ${record.id}`);
    setText(lasted, span(record.duration_ms));
    setText(tokens, `${compact(record.output_tokens)} out`);
    setAttribute(tokens, "title", `${whole(record.input_tokens)} in (${record.input_basis}), ${whole(record.output_tokens)} out (${record.basis})`);
    const input = `${compact(record.input_tokens)} in`;
    rest.show(`${input} · ${dollars(record.cost_nano_usd / 1e9)}`, input);
    setAttribute(rest.node, "title", exactDollars(record.cost_nano_usd));
    setText(outcome, words(record.outcome));
    outcome.dataset.level = LEVEL[record.outcome] ?? "full";
    setText(basis, record.basis);
    setAttribute(basis, "title", `How the output is known: ${HOW_WE_KNOW[record.basis] ?? record.basis}`);
  }
  return { node, show };
}
