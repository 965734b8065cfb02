// Tokens per day, as bars: what was generated at the bottom, what was asked on top of it. Drawn by uPlot.

import { compact, dollars, utcDay, whole } from "./format.js";
import { element, setAttribute, setText } from "./dom.js";

const DAYS = 30;

/** One entry a day, oldest first; days without a row are zero. */
export function fill(rows, now) {
  const byDay = new Map(rows.map((row) => [row.day, row]));
  return Array.from({ length: DAYS }, (_, index) => {
    const day = utcDay(now, DAYS - 1 - index);
    return byDay.get(day) ?? { day, requests: 0, input_tokens: 0, output_tokens: 0, cost_nano_usd: 0 };
  });
}

export class DaysChart {
  constructor(container, legend) {
    this.container = container;
    this.days = [];
    this.at = null; // the day that is read out; null: the last one
    this.total = 0;
    this.plot = null;
    this.frame = element("div", { class: "plot", tabindex: "0", role: "group", "aria-describedby": "days-read" });
    this.read = element("p", { class: "read", id: "days-read" });
    this.empty = element("p", { class: "empty", text: "No tokens in the last 30 days.", hidden: true });
    container.append(element("div", { class: "rows-frame" }, this.frame, this.empty), this.read);
    legend.append(element("span", { class: "key input", text: "input" }), element("span", { class: "key output", text: "output" }));
    this.frame.addEventListener("keydown", (event) => this.step(event));
    this.frame.addEventListener("blur", () => this.point(null));
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.frame);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  show(rows, now) {
    const days = fill(rows, now);
    const same = JSON.stringify(days) === JSON.stringify(this.days);
    this.days = days;
    if (same && this.plot) return;
    this.total = days.reduce((sum, day) => sum + day.input_tokens + day.output_tokens, 0);
    this.empty.hidden = this.total > 0;
    setAttribute(this.frame, "aria-label", `Tokens of the last ${DAYS} days: ${whole(this.total)}. Arrow keys read out single days.`);
    if (this.plot) this.plot.setData(this.data());
    else this.draw();
    this.readOut();
  }

  draw() {
    if (!this.days.length) return;
    this.plot?.destroy();
    const colour = (name) => getComputedStyle(this.container).getPropertyValue(name).trim();
    const [ink, line, input, output] = ["--muted", "--line", "--input", "--output"].map(colour);
    const bars = uPlot.paths.bars({ size: [0.68, 40], radius: 0.12 });
    const axis = { stroke: ink, font: "12px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: line, width: 1 } };
    const series = (stroke) => ({ fill: stroke, stroke, width: 0, paths: bars, points: { show: false } });
    this.plot = new uPlot(
      {
        ...this.size(),
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
        padding: [12, 16, 0, 0],
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
        hooks: { setCursor: [(plot) => this.hover(plot.cursor.idx)] },
        scales: { x: { range: (_, from, to) => [from - 43_200, to + 43_200] }, y: { range: (_, __, most) => [0, Math.max(10, most * 1.08)] } },
        axes: [
          { ...axis, grid: { show: false }, size: 30, space: 64, values: (_, marks) => marks.map((at) => this.label(at)), incrs: [1, 2, 7, 14].map((n) => n * 86_400) },
          { ...axis, size: 52, space: 44, values: (_, marks) => marks.map((mark) => (this.total && Number.isInteger(mark) ? compact(mark) : "")) },
        ],
        series: [{}, series(input), series(output)],
      },
      this.data(),
      this.frame,
    );
  }

  /** Seconds; input and output; output. The second is drawn over the first. */
  data() {
    return [
      this.days.map((day) => Date.parse(day.day) / 1000),
      this.days.map((day) => day.input_tokens + day.output_tokens),
      this.days.map((day) => day.output_tokens),
    ];
  }

  size() {
    return { width: Math.max(200, this.frame.clientWidth), height: Math.max(120, this.frame.clientHeight) };
  }

  label(seconds) {
    return new Date(seconds * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
  }

  step(event) {
    const last = this.days.length - 1;
    const at = this.at ?? last;
    const to = { ArrowLeft: Math.max(0, at - 1), ArrowRight: Math.min(last, at + 1), Home: 0, End: last }[event.key];
    if (to === undefined || !this.plot) return;
    event.preventDefault();
    this.point(to);
  }

  point(index) {
    if (!this.plot) return;
    const left = index === null ? -10 : this.plot.valToPos(this.plot.data[0][index], "x");
    this.plot.setCursor({ left, top: index === null ? -10 : 10 });
  }

  hover(index) {
    this.at = index ?? null;
    this.readOut();
  }

  readOut() {
    const day = this.days[this.at ?? this.days.length - 1];
    if (!day) return;
    setAttribute(this.read, "aria-live", this.at === null ? null : "polite"); // not each time that figures change
    const name = new Date(Date.parse(day.day)).toLocaleDateString("en-GB", { weekday: "short", day: "numeric", month: "short", timeZone: "UTC" });
    setText(this.read, `${name}: ${whole(day.input_tokens)} in, ${whole(day.output_tokens)} out, ${dollars(day.cost_nano_usd / 1e9)}, ${whole(day.requests)} request${day.requests === 1 ? "" : "s"}`);
  }
}

