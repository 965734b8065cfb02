// The operator's page, on the admin listener.

import { DaysChart } from "./chart.js";
import { element, setAttribute, setText } from "./dom.js";
import { Live, LIVE_ROWS, Records, RECORD_ROWS } from "./exchanges.js";
import { rate, span, utcDay, whole } from "./format.js";
import { QUOTA_ROWS, Quotas } from "./quotas.js";
import { Shares } from "./shares.js";
import { gate } from "./sign_in.js";
import { curl, python, snippet } from "./snippets.js";
import { every, NotAvailable, SignInNeeded, Source } from "./source.js";
import { firstDay, Now, Totals } from "./totals.js";

const TOP = 100; // rows by key and by model that are fetched
const at = (id) => document.getElementById(id);
const source = new Source("meter-proxy-admin-token");

const needsToken = document.querySelector("meta[name=needs-token]").content === "yes";
gate(source, { knock: () => source.json("about.json"), enter, always: needsToken });

function enter(about) {
  const example = {
    baseUrl: reachable(about.base_url),
    model: about.models[0] ?? "your-model",
    needsKey: about.needs_key,
  };
  const wanted = { key: "", quotas: "", offset: 0 };
  const refreshes = {};
  const status = new Status(at("status"));

  const totals = new Totals(at("totals"), () => refreshes.shares());
  const now = new Now(at("totals"));
  const chart = new DaysChart(at("days"), at("days-legend"));
  const quotas = new Quotas(at("quotas"), { pick, turn: (offset) => { wanted.offset = offset; refreshes.quotas(); } });
  const byKey = new Shares(at("by-key"), "key", { pick, save: () => save("key") });
  const byModel = new Shares(at("by-model"), "model", { save: () => save("model") });
  const live = new Live(at("live"), pick);
  const records = new Records(at("records"), pick);
  snippet(at("curl"), curl(example), "curl");
  snippet(at("python"), python(example), "Python");
  setText(at("version"), `meter-proxy ${about.version}`);
  at("filter").hidden = false;

  const tryThis = () => element("div", { class: "try" },
    element("p", { text: "No exchange yet. Try this one:" }), element("pre", { tabindex: "0" }, element("code", { text: curl(example) })));
  const nothingUsed = () => (wanted.key ? `Nothing by ${wanted.key} in this time.` : "Nothing in this time.");

  function section(name, seconds, work, unavailable) {
    refreshes[name] = every(seconds, work, {
      worked: () => status.worked(name),
      failed: (error) => {
        if (error instanceof SignInNeeded) location.reload();
        else if (error instanceof NotAvailable) unavailable(`Not available: ${error.message}`);
        else status.failed(name, error);
      },
    });
  }

  section("live", 2, async () => {
    const answer = await source.json("api/live", { limit: wanted.key ? TOP : LIVE_ROWS });
    status.show(answer);
    const inFlight = Object.values(answer.inflight).reduce((sum, count) => sum + count, 0);
    const pace = answer.rates;
    now.show(inFlight, pace ? `${rate(pace.output_tokens_per_s)} tokens/s out · ${rate(pace.requests_per_s)} requests/s` : "");
    if (answer.streams === undefined) throw new NotAvailable("this version does not list streams.");
    const shown = answer.streams.filter((stream) => !wanted.key || stream.key === wanted.key);
    live.show(shown, wanted.key ? `No stream of ${wanted.key} is open.` : "No stream is open.");
    setText(at("live-note"), answer.streams_total > LIVE_ROWS ? `oldest ${LIVE_ROWS} of ${whole(answer.streams_total)}` : "oldest first");
  }, (text) => live.show([], text));

  section("records", 3, async () => {
    const { data } = await source.json("api/records", { limit: RECORD_ROWS, key: wanted.key });
    records.show(data, wanted.key ? `No exchange of ${wanted.key} yet.` : tryThis());
  }, (text) => records.show([], text));

  section("quotas", 3, async () => {
    const query = { q: wanted.quotas, key: wanted.key, limit: QUOTA_ROWS, offset: wanted.offset };
    const { data, total } = await source.json("api/quotas", query);
    if (!data.length && wanted.offset) wanted.offset = 0;
    quotas.show(data, total, wanted.offset, wanted.quotas || wanted.key ? "No rule of such a key." : "No rule limits anybody.");
  }, (text) => quotas.show([], 0, 0, text));

  section("days", 10, async () => {
    const today = Date.now();
    const { data } = await source.json("api/usage", { by: "day", since: firstDay(30, today), key: wanted.key });
    totals.show(data, today);
    chart.show(data, today);
  }, () => chart.show([], Date.now()));

  section("shares", 10, async () => {
    const query = { since: firstDay(totals.period.days, Date.now()), key: wanted.key, top: TOP };
    const [keys, models] = await Promise.all(["key", "model"].map((by) => source.json("api/usage", { ...query, by })));
    byKey.show(keys.data, keys.total, nothingUsed());
    byModel.show(models.data, models.total, nothingUsed());
    for (const note of document.querySelectorAll("[data-period]")) setText(note, totals.period.name.toLowerCase());
  }, (text) => { byKey.show([], 0, text); byModel.show([], 0, text); });

  function pick(key) {
    const id = key.startsWith("account:") ? "" : key;
    if (!id) {
      at("quota-search").value = key.slice("account:".length);
      at("quota-search").dispatchEvent(new Event("input"));
      return;
    }
    at("only").value = id;
    only();
  }

  function only() {
    wanted.key = at("only").value.trim();
    wanted.offset = 0;
    for (const refresh of Object.values(refreshes)) refresh();
  }

  at("filter").addEventListener("submit", (event) => event.preventDefault());
  at("only").addEventListener("input", settled(only));
  at("quota-search").addEventListener("input", settled(() => {
    wanted.quotas = at("quota-search").value.trim();
    wanted.offset = 0;
    refreshes.quotas();
  }));

  async function save(by) {
    const since = firstDay(totals.period.days, Date.now());
    try {
      const response = await source.fetch("api/usage", { by, since, key: wanted.key, format: "csv" });
      const url = URL.createObjectURL(await response.blob());
      element("a", { href: url, download: `usage-by-${by}-${since}-${utcDay(Date.now())}.csv` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
    } catch (error) {
      status.failed("CSV", error);
    }
  }
}

/** A listener on all interfaces is reached by the name under which this page was. */
function reachable(baseUrl) {
  const url = new URL(baseUrl);
  if (["0.0.0.0", "[::]"].includes(url.hostname)) url.hostname = location.hostname;
  return url.href.replace(/\/$/, "");
}

/** `work`, when the reader has stopped typing. */
function settled(work) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, 300);
  };
}

/** The line in the head: ready or not, since when, and what could not be read. */
class Status {
  constructor(node) {
    this.node = node;
    this.failures = new Map();
    this.said = "";
  }

  show({ ready, uptime_s: uptime, workers }) {
    const up = workers.filter((worker) => worker.state === "ready").length;
    this.said = `${ready ? "ready" : "not ready"} · ${up} of ${workers.length} worker${workers.length === 1 ? "" : "s"} · up ${span(Math.floor(uptime) * 1000).replace(/\.\d/, "")}`;
    this.isReady = ready;
    this.write();
  }

  worked(name) {
    if (this.failures.delete(name)) this.write();
  }

  failed(name, error) {
    this.failures.set(name, error.message);
    this.write();
  }

  write() {
    const [failure] = this.failures;
    setAttribute(this.node, "aria-live", failure ? "polite" : null); // not the uptime
    this.node.dataset.level = failure ? "full" : this.isReady ? "good" : "warn";
    setText(this.node, failure ? `${failure[0]}: no answer (${failure[1]}), trying on` : this.said);
  }
}
