// Numbers and times as people read them. Nothing here touches the page.

const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const UNITS = {
  requests: "requests",
  tokens: "tokens",
  input_tokens: "input tokens",
  output_tokens: "output tokens",
  concurrent: "at once",
};
export const DAY_MS = 86_400_000;

/** 1234567 -> "1.23M" */
export const compact = (number) => (Math.abs(number) < 10_000 ? whole(number) : COMPACT.format(number));

/** 1234567 -> "1,234,567" */
export const whole = (number) => WHOLE.format(number);

/** 12.34 -> "12.3"; 1234.5 -> "1,235" */
export const rate = (number) => (number < 100 ? number.toFixed(1) : compact(Math.round(number)));

/** Dollars: two decimals; two or three digits of what is so small that these would hide it. */
export function dollars(usd) {
  if (usd === 0) return "$0";
  if (Math.abs(usd) >= 10_000) return "$" + COMPACT.format(usd);
  const size = Math.floor(Math.log10(Math.abs(usd)));
  const decimals = size >= 0 ? 2 : Math.min(9, (size < -2 ? 1 : 2) - size);
  const text = usd.toFixed(decimals);
  return "$" + (decimals > 2 ? text.replace(/(\.\d\d\d*?)0+$/, "$1") : text.replace(/\B(?=(\d{3})+(?=\.))/g, ","));
}

/** Nano-dollars as dollars, with all digits. */
export const exactDollars = (nano) => "$" + (nano / 1e9).toFixed(9).replace(/\.?0+$/, "");

/** An amount of a rule's unit, short: "12.3k", "$4.20". */
export const amount = (number, unit) => (unit === "cost_usd" ? dollars(Number(number)) : compact(Number(number)));

/** "tokens / day", "/ month" (of dollars), "at once" */
export function unitPer(unit, per) {
  const name = UNITS[unit] ?? "";
  const often = per === null || unit === "concurrent" ? "" : per === "total" ? "in total" : `/ ${per}`;
  return [name, often].filter(Boolean).join(" ");
}

/** Milliseconds -> "850 ms", "12.3 s", "4 min 10 s", "2 h 5 min", "3 d 4 h" */
export function span(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(Math.floor(ms / 100) / 10).toFixed(1)} s`;
  return inUnits(ms);
}

/** What is left until an instant: "0 s", "42 s", "4 min 10 s", ... */
export const countdown = (ms) => (ms < 60_000 ? `${Math.max(0, Math.ceil(ms / 1000))} s` : inUnits(ms));

function inUnits(ms) {
  const seconds = Math.floor(ms / 1000);
  const [d, h, min, s] = [Math.floor(seconds / 86_400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60, seconds % 60];
  if (d) return `${d} d ${h} h`;
  if (h) return `${h} h ${min} min`;
  return `${min} min ${s} s`;
}

/** The UTC day, `ago` days before `now` (ms): "2026-01-31" */
export const utcDay = (now, ago = 0) => new Date(now - ago * DAY_MS).toISOString().slice(0, 10);

/** An instant in the reader's own zone: "14:03:59", with the date where it is not today's. */
export function clock(iso, now) {
  const at = new Date(iso);
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date(now).toDateString() ? time : `${at.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time.slice(0, 5)}`;
}

/** client_disconnected -> "client disconnected" */
export const words = (name) => name.replaceAll("_", " ");
