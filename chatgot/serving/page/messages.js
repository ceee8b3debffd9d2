// How does a conversation look? One article for each shown turn; only what is new is added, so that
// a screen reader hears each turn once, when it is whole.

import { make } from "./dom.js";
import { placeOf } from "./tree.js";

const HUES = 8;

const ENDINGS = {
  stopped: "stopped",
  length: "cut at the length set",
  broken: "broken off",
};

/** Draws the turns into `log`; `actions` has copy, retry, edit and walk, called with a turn. */
export class Messages {
  constructor(log, actions) {
    this.log = log;
    this.actions = actions;
    this.articles = new Map();
    this.hues = new Map(); // from each name to the number of its colour
  }

  /** Show these turns of a tree; `growing` is the id of the one that is being answered. */
  show(tree, path, growing = null) {
    const before = this.articles;
    this.articles = new Map();
    path.forEach((turn) => this.hueOf(turn.name));
    const parts = [];
    let last = null;
    for (const turn of path) {
      const { place, count } = placeOf(tree, turn.id);
      const state = [place, count, turn.text, turn.ended, turn.name, turn.id === growing].join("/");
      const known = before.get(turn.id);
      const isSame = known?.state === state;
      const article = isSame ? known.article : this.article(turn, place, count, growing);
      this.articles.set(turn.id, { article, state });
      const note = noteBefore(turn, last);
      if (note) parts.push(this.note(turn.id, note));
      parts.push(article);
      if (turn.by === "model") last = turn;
    }
    replaceChanged(this.log, parts);
  }

  /** Show more of the turn that grows; the screen reader waits for its end. */
  grow(turn) {
    const { article } = this.articles.get(turn.id);
    article.querySelector(".name").textContent = turn.name || "…";
    article.dataset.hue = this.hueOf(turn.name);
    article.querySelector(".speech").textContent = turn.text;
  }

  /** Mark the copied stretches of a turn, [from, up to] in characters. */
  mark(turn, copies) {
    const speech = this.articles.get(turn.id)?.article.querySelector(".speech");
    const characters = [...turn.text];
    const parts = [];
    let done = 0;
    for (const [start, end] of copies) {
      const copied = make("mark", {}, characters.slice(start, end).join(""));
      parts.push(characters.slice(done, start).join(""), copied);
      done = end;
    }
    speech?.replaceChildren(...parts, characters.slice(done).join(""));
  }

  /** Put the focus on a branch arrow of a turn, or on the other one at an end. */
  focusBranch(id, by) {
    const article = this.articles.get(id)?.article;
    const [back, on] = article?.querySelectorAll(".branches button") ?? [];
    const wanted = by < 0 ? [back, on] : [on, back];
    wanted.find((button) => button && !button.disabled)?.focus();
  }

  /** Put the focus on the last message's Retry or Edit. */
  focusLast() {
    this.log.querySelector(".turn:last-of-type .again")?.focus();
  }

  /** Turn a message into a field; `onDone` gets the new text, or null if nothing is to change. */
  edit(turn, onDone) {
    const { article } = this.articles.get(turn.id);
    const rows = turn.text.split("\n").length;
    const area = make("textarea", { "aria-label": "Your line", rows });
    area.value = turn.text;
    const finish = (text) => {
      this.articles.delete(turn.id); // its next drawing is a new one
      onDone(text);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        finish(area.value);
      } else if (event.key === "Escape") {
        event.stopPropagation();
        finish(null);
      }
    });
    const sayIt = () => finish(area.value);
    const say = make("button", { type: "button", class: "main", click: sayIt }, "Say it");
    const leave = make("button", { type: "button", click: () => finish(null) }, "Cancel");
    article.querySelector(".speech").replaceWith(area);
    article.querySelector("footer").replaceChildren(say, leave);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  /** Return the number of a name's colour: its usual one, or a free one if that is taken. */
  hueOf(name) {
    if (!this.hues.has(name)) {
      const taken = new Set(this.hues.values());
      let hue = usualHue(name);
      while (taken.size < HUES && taken.has(hue)) hue = (hue + 1) % HUES;
      if (name) this.hues.set(name, hue);
      return hue;
    }
    return this.hues.get(name);
  }

  /** Forget the colours of the names: another conversation comes. */
  forgetHues() {
    this.hues.clear();
    this.articles.clear();
  }

  note(id, text) {
    const key = `note-${id}`;
    const known = [...this.log.children].find((child) => child.dataset.key === key);
    if (known?.textContent === text) return known;
    const note = make("p", { class: "note" }, text);
    note.dataset.key = key;
    return note;
  }

  article(turn, place, count, growing) {
    const isGrowing = turn.id === growing;
    const name = make("span", { class: "name" }, turn.name || "…");
    const ending = ENDINGS[turn.ended] ? make("small", {}, ENDINGS[turn.ended]) : null;
    const speech = make("p", { class: "speech", "aria-hidden": isGrowing }, turn.text);
    if (!turn.text && !isGrowing) speech.append(make("i", {}, "says nothing"));
    const footer = make("footer", {}, ...(isGrowing ? [] : this.buttons(turn, place, count)));
    const parts = [make("header", {}, name, ending), speech, footer];
    const kind = `turn ${turn.by}${isGrowing ? " growing" : ""}`;
    const article = make("article", { class: kind, "aria-label": turn.name }, ...parts);
    article.dataset.turn = turn.id;
    article.dataset.hue = this.hueOf(turn.name);
    return article;
  }

  buttons(turn, place, count) {
    const button = (words, action, kind = null) => {
      const act = () => this.actions[action](turn);
      return make("button", { type: "button", class: kind, click: act }, words);
    };
    const isYours = turn.by === "you";
    const again = isYours ? button("Edit", "edit", "again") : button("Retry", "retry", "again");
    const parts = [button("Copy", "copy"), again];
    if (this.actions.mark && !isYours) parts.push(button("Original?", "mark"));
    if (count > 1) parts.push(this.branches(turn, place, count));
    return parts;
  }

  branches(turn, place, count) {
    const arrow = (words, label, by, isLast) => {
      const walk = () => this.actions.walk(turn, by);
      const attributes = { type: "button", "aria-label": label, disabled: isLast, click: walk };
      return make("button", attributes, words);
    };
    const back = arrow("‹", "Previous version", -1, place === 1);
    const on = arrow("›", "Next version", 1, place === count);
    const where = make("span", {}, `${place}/${count}`);
    const label = `Version ${place} of ${count}`;
    const attributes = { class: "branches", role: "group", "aria-label": label };
    return make("span", attributes, back, where, on);
  }
}

function noteBefore(turn, last) {
  if (turn.by !== "model" || !last || !turn.model) return "";
  if (turn.model !== last.model) return `${turn.model} speaks from here, step ${turn.step}`;
  if (turn.step > last.step) return `a newer checkpoint speaks from here, step ${turn.step}`;
  return "";
}

// Only elements that differ are touched: what stays keeps its focus, and is not read out again
function replaceChanged(parent, parts) {
  const kept = new Set(parts);
  for (const child of [...parent.children]) {
    if (!kept.has(child)) child.remove();
  }
  parts.forEach((part, i) => {
    if (parent.children[i] !== part) parent.insertBefore(part, parent.children[i] ?? null);
  });
}

// The same name usually has the same colour everywhere
function usualHue(name) {
  let sum = 0;
  for (const letter of name) sum = (31 * sum + letter.codePointAt(0)) % 9973;
  return sum % HUES;
}
