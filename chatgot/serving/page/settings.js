// How is an answer drawn? A small panel: temperature, length, repetition, seed.

import { make } from "./dom.js";
import { read, write } from "./storage.js";

const OFF = { top_k: 0, min_p: 0, seed: "" };
const FIELDS = {
  temperature: {
    label: "Temperature",
    min: 0,
    max: 1.5,
    step: 0.05,
    hint: "0: always the likeliest token",
  },
  top_k: { label: "Top k", min: 0, max: 100, step: 1, hint: "only the k likeliest; 0: off" },
  min_p: {
    label: "Min p",
    min: 0,
    max: 0.5,
    step: 0.01,
    hint: "only what has this part of the likeliest token's chance; 0: off",
  },
  length: { label: "Length", min: 20, max: 1000, step: 20, hint: "tokens at most" },
  repetition: { label: "Against repetition", min: 0, max: 2, step: 0.1, hint: "0: off (DRY)" },
};

/** The settings of one view; they are kept under `name`. */
export class Settings {
  constructor(name, panel, defaults) {
    this.name = `settings:${name}`;
    const isObject = (value) => typeof value === "object";
    const stored = read(this.name, isObject, {});
    this.values = { ...OFF, ...defaults };
    for (const field of Object.keys(FIELDS)) {
      const { min, max } = FIELDS[field];
      if (stored[field] >= min && stored[field] <= max) this.values[field] = Number(stored[field]);
    }
    if (/^\d{1,9}$/.test(stored.seed)) this.values.seed = String(stored.seed);
    panel.prepend(...Object.keys(FIELDS).map((field) => this.slider(field)), this.seedField());
  }

  slider(field) {
    const { label, min, max, step, hint } = FIELDS[field];
    const shown = make("output", {}, String(this.values[field]));
    const about = `${this.name}:${field}`;
    const range = { type: "range", min, max, step, value: this.values[field] };
    const input = make("input", { ...range, "aria-label": label, "aria-describedby": about });
    input.addEventListener("input", () => {
      shown.textContent = input.value;
      this.change(field, Number(input.value));
    });
    const head = make("span", { class: "setting" }, make("span", {}, label), shown);
    return make("label", {}, head, input, make("small", { id: about }, hint));
  }

  seedField() {
    const about = `${this.name}:seed`;
    const input = make("input", {
      type: "text",
      inputmode: "numeric",
      pattern: "[0-9]*",
      maxlength: 9,
      "aria-label": "Seed",
      "aria-describedby": about,
      placeholder: "another one each time",
      value: this.values.seed,
    });
    input.addEventListener("input", () => {
      const isNumber = /^\d*$/.test(input.value);
      input.setAttribute("aria-invalid", String(!isNumber));
      if (isNumber) this.change("seed", input.value);
    });
    const words = "the same seed gives the same answer; a retry counts on from it";
    const head = make("span", { class: "setting" }, make("span", {}, "Seed"));
    return make("label", {}, head, input, make("small", { id: about }, words));
  }

  change(field, value) {
    this.values[field] = value;
    write(this.name, this.values);
  }

  /** Return the settings as fields of a request; `retry` is how often it was asked before. */
  forRequest(retry = 0) {
    const { temperature, top_k: topK, min_p: minP, length, repetition, seed } = this.values;
    return {
      temperature,
      ...(topK > 0 && { top_k: topK }),
      ...(minP > 0 && { min_p: minP }),
      max_tokens: length,
      dry_multiplier: repetition,
      seed: seed === "" ? randomSeed() : Number(seed) + retry,
    };
  }
}

function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
}

/** Let a <details> panel close with Escape and with a press anywhere else. */
export function closesOutside(details) {
  document.addEventListener("pointerdown", (event) => {
    if (!details.contains(event.target)) details.open = false;
  });
  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !details.open) return;
    event.stopPropagation();
    details.open = false;
    details.querySelector("summary").focus();
  });
}
