// The page of a key's holder, on the public listener: all from GET /v1/usage, with the holder's own key.

import { DaysChart } from "./chart.js";
import { setText } from "./dom.js";
import { fullness, Quotas } from "./quotas.js";
import { Shares } from "./shares.js";
import { gate } from "./sign_in.js";
import { curl, python, snippet } from "./snippets.js";
import { every, SignInNeeded, Source } from "./source.js";
import { firstDay, Totals } from "./totals.js";

const DAYS = 30;
const at = (id) => document.getElementById(id);
const prefix = document.querySelector("meta[name=api-prefix]").content;
const path = prefix.replace(/^\//, "");
const source = new Source("meter-proxy-api-key");
const ask = () => source.json(`${path}/usage`, { days: DAYS });

gate(source, { knock: ask, enter, always: true });

async function enter(first) {
  let document_ = first;
  const totals = new Totals(at("totals"), () => show());
  const chart = new DaysChart(at("days"), at("days-legend"));
  const quotas = new Quotas(at("quotas"));
  const byModel = new Shares(at("by-model"), "model", { count: 4 });
  const status = at("status");

  function show() {
    const now = Date.now();
    const rows = document_.days.flatMap(({ day, models }) => models.map((model) => row(day, model)));
    totals.show(rows, now);
    chart.show(byDay(rows), now);
    const models = byName(rows.filter(({ day }) => day >= firstDay(totals.period.days, now)));
    byModel.show(models, models.length, "Nothing in this time.");
    for (const note of document.querySelectorAll("[data-period]")) setText(note, totals.period.name.toLowerCase());
    const rules = document_.quotas.map((quota) => ({ ...quota, key: quota.scope === "account" ? `account ${document_.account}` : document_.key }));
    rules.sort((one, other) => fullness(other) - fullness(one));
    quotas.show(rules, rules.length, quotas.pager.offset, "No rule limits this key.");
    status.dataset.level = document_.live ? "good" : "warn";
    setText(status, `key ${document_.key}${document_.live ? "" : " · the figures may be too low at the moment"}`);
  }

  show();
  every(5, async () => { document_ = await ask(); show(); }, {
    worked: () => {},
    failed: (error) => {
      if (error instanceof SignInNeeded) location.reload();
      status.dataset.level = "full";
      setText(status, `no answer (${error.message}), trying on`);
    },
  });
  const example = { baseUrl: location.origin + prefix, model: await modelName(), needsKey: true };
  snippet(at("curl"), curl(example), "curl");
  snippet(at("python"), python(example), "Python");
}

async function modelName() {
  try {
    return (await source.json(`${path}/models`)).data[0]?.id ?? "your-model";
  } catch {
    return "your-model";
  }
}

function row(day, model) {
  return { ...model, day, cost_nano_usd: Math.round(Number(model.cost_usd) * 1e9) };
}

const byDay = (rows) => summed(rows, "day");

/** The most expensive first, then the largest. */
const byName = (rows) => summed(rows, "model").sort((one, other) =>
  other.cost_nano_usd - one.cost_nano_usd || other.input_tokens + other.output_tokens - one.input_tokens - one.output_tokens);

function summed(rows, column) {
  const sums = new Map();
  for (const row of rows) {
    const sum = sums.get(row[column]);
    if (sum === undefined) sums.set(row[column], { ...row });
    else for (const field of ["requests", "input_tokens", "output_tokens", "cost_nano_usd"]) sum[field] += row[field];
  }
  return [...sums.values()];
}
