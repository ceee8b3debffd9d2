// How does one choose a name from many, or type another one? A field with a list (ARIA combobox).

import { make } from "./dom.js";

const MOST = 200; // options in the list at once; typing finds the others
let made = 0;

export class Combobox {
  /** `options`: a function that returns [{name, note}]; `onPick` gets the name that was chosen. */
  constructor({ label, options, onPick, placeholder = "", keeps = true }) {
    made += 1;
    this.options = options;
    this.onPick = onPick;
    this.keeps = keeps; // whether the field shows the chosen name, or is empty again
    this.value = "";
    this.active = -1;
    const id = `names-${made}`;
    this.list = make("ul", { role: "listbox", id, "aria-label": label, hidden: true });
    this.input = make("input", {
      type: "text",
      role: "combobox",
      autocomplete: "off",
      spellcheck: "false",
      "aria-expanded": "false",
      "aria-controls": this.list.id,
      "aria-autocomplete": "list",
      maxlength: 60,
      placeholder,
      click: () => this.open(""),
      input: () => this.open(this.input.value),
      keydown: (event) => this.onKey(event),
      blur: () => this.leave(),
    });
    const field = make("label", {}, make("span", {}, label), this.input);
    this.element = make("div", { class: "combobox" }, field, this.list);
    // pressing the mouse on an option must not take the focus off the field, which closes the list
    this.list.addEventListener("mousedown", (event) => event.preventDefault());
  }

  /** Show a name as the chosen one, without calling `onPick`. */
  set(name) {
    this.value = name;
    this.input.value = name;
  }

  open(typed) {
    const wanted = typed.trim().toUpperCase();
    const all = this.options();
    const names = all.filter((option) => option.name.toUpperCase().includes(wanted)).slice(0, MOST);
    const items = names.map((option, i) => this.item(option, i));
    this.list.replaceChildren(...items);
    this.list.hidden = items.length === 0;
    this.list.scrollTop = 0;
    this.input.setAttribute("aria-expanded", String(items.length > 0));
    this.activate(-1);
  }

  item({ name, note }, i) {
    const small = make("small", {}, note);
    const choose = () => this.pick(name);
    const option = { role: "option", id: `${this.list.id}-${i}`, "aria-selected": "false" };
    const item = make("li", { ...option, click: choose }, name, small);
    item.dataset.name = name;
    return item;
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.activate(-1);
  }

  activate(i) {
    this.list.children[this.active]?.setAttribute("aria-selected", "false");
    this.active = i;
    const item = this.list.children[i];
    if (item) {
      item.setAttribute("aria-selected", "true");
      item.scrollIntoView({ block: "nearest" });
      this.input.setAttribute("aria-activedescendant", item.id);
    } else {
      this.input.removeAttribute("aria-activedescendant");
    }
  }

  onKey(event) {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (this.list.hidden) this.open("");
      else this.move(event.key === "ArrowDown" ? 1 : -1);
    } else if (event.key === "Enter") {
      event.preventDefault();
      this.pick(this.list.children[this.active]?.dataset.name ?? this.input.value);
    } else if (event.key === "Escape" && !this.list.hidden) {
      // this Escape closes the list and does not stop an answer
      event.stopPropagation();
      this.input.value = this.value;
      this.close();
    }
  }

  // from the last option to the first one, and back
  move(by) {
    const count = this.list.children.length;
    const from = this.active < 0 && by < 0 ? count : this.active;
    this.activate((from + by + count) % count);
  }

  leave() {
    if (this.input.value.trim() !== this.value) this.pick(this.input.value);
    this.close();
  }

  pick(typed) {
    const name = this.known(plainName(typed));
    this.close();
    const isNew = name !== "" && name !== this.value;
    this.set(this.keeps ? name || this.value : "");
    if (isNew) this.onPick(name);
  }

  // "juliet" means JULIET where there is one: the training text knows her only so
  known(name) {
    const all = this.options();
    if (all.some((option) => option.name === name)) return name;
    const sounds = name.toUpperCase();
    return all.find((option) => option.name.toUpperCase() === sounds)?.name ?? name;
  }
}

// A speaker's line is one line that ends with a colon
function plainName(typed) {
  return typed.replace(/\s+/g, " ").trim().replace(/:+$/, "");
}
