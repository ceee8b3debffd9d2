// Which models are there, and which one is chosen?

import { listModels } from "./api.js";
import { grouped, make } from "./dom.js";
import { read, write } from "./storage.js";

const isName = (value) => typeof value === "string";

/** The models of the server; a `change` event follows a choice or a newer checkpoint. */
export class Models extends EventTarget {
  constructor(select) {
    super();
    this.select = select;
    this.list = [];
    this.chosen = null;
    select.addEventListener("change", () => this.choose(select.value));
  }

  /** Ask the server again. Raises Trouble. */
  async refresh() {
    this.list = (await listModels()).filter((model) => model.chatgot);
    this.show();
    const wanted = this.chosen?.id ?? read("model", isName, "");
    this.take(this.find(wanted) ?? this.list[0] ?? null);
  }

  /** Return the model with this id, if the server has it. */
  find(id) {
    return this.list.find((model) => model.id === id);
  }

  /** Choose a model by its id. */
  choose(id) {
    write("model", id);
    this.take(this.find(id) ?? null);
  }

  take(model) {
    const before = this.chosen;
    this.chosen = model;
    this.select.value = model?.id ?? "";
    const isSame = before?.id === model?.id && before?.chatgot.step === model?.chatgot.step;
    if (!isSame) this.dispatchEvent(new CustomEvent("change", { detail: { before } }));
  }

  show() {
    const groups = Map.groupBy(this.list, (model) => model.chatgot.run_id);
    const parts = [...groups].map(([run, models]) => {
      const options = models.map((model) => {
        // a closed list shows no groups, so that among several runs each option names its own
        const words = groups.size > 1 ? `${wordsFor(model)} · ${run}` : wordsFor(model);
        return make("option", { value: model.id }, words);
      });
      return make("optgroup", { label: run }, ...options);
    });
    // a list that is open at the moment must not change under the reader's hand
    const text = parts.map((part) => part.label + part.textContent).join();
    if (text === this.shown) return;
    this.shown = text;
    this.select.replaceChildren(...parts);
  }
}

function wordsFor({ chatgot: about }) {
  const loss = typeof about.val_loss === "number" ? ` · loss ${about.val_loss.toFixed(2)}` : "";
  return `${about.checkpoint} · step ${grouped(about.step)}${loss}`;
}
