// How does a run learn? Its losses, its samples at each step, and the way to its newest checkpoint.

import { listRuns, readRun, Trouble } from "./api.js";
import { drawCurve } from "./curve.js";
import { byId, grouped, make } from "./dom.js";
import { read, write } from "./storage.js";

const LIVE_INTERVAL_MS = 2000;
const CALM_INTERVAL_MS = 15_000; // a finished run may be resumed
const PLAY_INTERVAL_MS = 900;

export class Watch {
  /** `talk` is called with the id of a run whose newest checkpoint is to be talked to. */
  constructor(talk) {
    this.runs = [];
    this.run = null;
    this.prompt = null; // the index of the prompt whose samples are shown
    this.place = Infinity; // which of its samples; Infinity: the newest
    this.isOpen = false;
    this.select = byId("run");
    this.slider = byId("step");
    this.select.addEventListener("change", () => this.choose(this.select.value));
    this.slider.addEventListener("input", () => this.onSlider());
    byId("prompt").addEventListener("change", () => {
      this.prompt = Number(byId("prompt").value);
      this.place = Infinity;
      this.showSamples();
    });
    byId("play").addEventListener("click", () => (this.player ? this.pause() : this.play()));
    byId("talk").addEventListener("click", () => talk(this.run.run_id));
    new ResizeObserver(() => this.showCurve()).observe(byId("curve").parentElement);
    document.addEventListener("visibilitychange", () => this.look());
  }

  /** Begin or stop looking at the run. */
  open(isOpen) {
    this.isOpen = isOpen;
    if (!isOpen) this.pause();
    this.look();
  }

  // Look now and, while anybody looks at the page, again and again
  async look() {
    clearTimeout(this.timer);
    if (!this.isOpen || document.hidden || this.isLooking) return;
    this.isLooking = true;
    try {
      await this.refresh();
      byId("watch-trouble").hidden = true;
    } catch (error) {
      if (!(error instanceof Trouble)) throw error;
      byId("watch-trouble").textContent = `${error.message} Trying again every few seconds.`;
      byId("watch-trouble").hidden = false;
    } finally {
      this.isLooking = false;
      const pause = this.run && !this.run.live ? CALM_INTERVAL_MS : LIVE_INTERVAL_MS;
      if (this.isOpen) this.timer = setTimeout(() => this.look(), pause);
    }
  }

  async refresh() {
    this.runs = await listRuns();
    this.showRuns();
    byId("no-run").hidden = this.runs.length > 0;
    byId("watched").hidden = this.runs.length === 0;
    if (!this.select.value) return;
    const run = await readRun(this.select.value);
    if (run.run_id !== this.select.value) return; // another one was chosen meanwhile
    this.run = run;
    this.show();
  }

  showRuns() {
    const wanted = this.select.value || read("run", (value) => typeof value === "string", "");
    const options = this.runs.map((run) =>
      make("option", { value: run.run_id }, run.run_id),
    );
    const text = options.map((option) => option.textContent).join("\n");
    if (text === this.shownRuns) return;
    this.shownRuns = text;
    this.select.replaceChildren(...options);
    if (this.runs.some((run) => run.run_id === wanted)) this.select.value = wanted;
  }

  choose(runId) {
    write("run", runId);
    this.pause();
    this.place = Infinity;
    this.prompt = null;
    this.look();
  }

  // ----------------------------------------------------------------------------------------------

  show() {
    const { live, rows } = this.run;
    byId("live").textContent = live ? "in progress" : "not running";
    byId("live").className = `badge ${live ? "calm" : "good"}`;
    const summary = this.runs.find((run) => run.run_id === this.run.run_id);
    byId("talk").hidden = !summary?.models?.length;
    byId("facts").replaceChildren(...factsOf(rows, this.run.best_step).map(fact));
    this.showCurve();
    this.showNumbers();
    this.showSamples();
  }

  showCurve() {
    if (this.run && this.isOpen) drawCurve(byId("curve"), this.run.rows, this.run.best_step);
  }

  showNumbers() {
    const rows = this.run.rows.filter((row) => Number.isFinite(row.val_loss)).slice(-200);
    const cell = (value) => make("td", {}, Number.isFinite(value) ? value.toFixed(4) : "–");
    const lines = rows.map((row) =>
      make(
        "tr",
        {},
        make("td", {}, grouped(row.step)),
        ...[row.train_loss, row.val_loss, row.val_bits_per_byte].map(cell),
      ),
    );
    byId("numbers").replaceChildren(...lines);
  }

  showSamples() {
    const samples = this.run.samples.filter((sample) => typeof sample.text === "string");
    const indices = [...new Set(samples.map((sample) => sample.index))];
    if (!indices.includes(this.prompt)) this.prompt = indices[0] ?? null;
    this.showPrompts(indices, samples);
    this.samples = samples.filter((sample) => sample.index === this.prompt);
    const last = this.samples.length - 1;
    byId("no-samples").hidden = last >= 0;
    byId("samples").hidden = last < 0;
    if (last < 0) return;
    this.slider.max = last;
    this.slider.disabled = last === 0;
    byId("play").disabled = last === 0;
    this.slider.value = Math.min(this.place, last);
    this.showSample();
  }

  showPrompts(indices, samples) {
    const words = indices.map((index) => samples.find((sample) => sample.index === index).prompt);
    const text = words.join("\u0000");
    if (text === this.shownPrompts) return;
    this.shownPrompts = text;
    const options = words.map((prompt, i) => {
      const line = prompt.replace(/\s+/g, " ").trim();
      return make("option", { value: indices[i] }, line || "(the beginning of a text)");
    });
    byId("prompt").replaceChildren(...options);
    byId("prompt").value = this.prompt;
  }

  showSample() {
    const sample = this.samples[Number(this.slider.value)];
    showText(byId("sample-now"), sample);
    showText(byId("sample-first"), this.samples[0]);
    const step = `step ${grouped(sample.step)}`;
    byId("step-shown").textContent = step;
    this.slider.setAttribute("aria-valuetext", step);
  }

  onSlider() {
    this.pause();
    const place = Number(this.slider.value);
    // at the newest sample, the slider follows the run
    this.place = place === this.samples.length - 1 ? Infinity : place;
    this.showSample();
  }

  play() {
    byId("play").textContent = "Pause";
    const isAtEnd = Number(this.slider.value) === this.samples.length - 1;
    if (isAtEnd) this.moveTo(0);
    this.player = setInterval(() => {
      this.moveTo(Number(this.slider.value) + 1);
      if (this.place >= this.samples.length - 1) this.pause();
    }, PLAY_INTERVAL_MS);
  }

  moveTo(place) {
    this.place = place;
    this.slider.value = place;
    this.showSample();
  }

  pause() {
    clearInterval(this.player);
    this.player = null;
    byId("play").textContent = "Play";
  }
}

function showText(figure, sample) {
  const caption = make("figcaption", {}, `step ${grouped(sample.step)}`);
  const text = make("pre", {}, make("b", {}, sample.prompt), sample.text);
  if (figure.textContent === caption.textContent + text.textContent) return;
  figure.replaceChildren(caption, text);
}

function factsOf(rows, best) {
  const last = (name) => rows.findLast((row) => Number.isFinite(row[name]))?.[name];
  const bestRow = rows.find((row) => row.step === best && Number.isFinite(row.val_loss));
  return [
    ["optimizer steps", rows.length ? grouped(rows.at(-1).step) : null, ""],
    ["train_loss", last("train_loss")?.toFixed(4), "nats"],
    ["best val_loss", bestRow?.val_loss.toFixed(4), bestRow ? `step ${grouped(best)}` : ""],
    ["bits per byte", bestRow?.val_bits_per_byte?.toFixed(4), bestRow ? `step ${grouped(best)}` : ""],
    ["speed", rounded(last("tokens_per_s")), "tokens/s"],
  ];
}

function rounded(number) {
  return number === undefined ? null : grouped(Math.round(number));
}

function fact([name, value, unit]) {
  const small = value && unit ? make("small", {}, ` ${unit}`) : null;
  return make("div", {}, make("dt", {}, name), make("dd", {}, value ?? "–", small));
}
