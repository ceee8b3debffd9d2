// The notebook: you type, the model goes on, and each of its tokens shows how likely it was.
//
// The text field is a real one with a transparent background. Behind it lies a copy of the text
// whose parts are coloured. So typing, selecting and reading aloud are the browser's own.

import { sentenceOf, streamText } from "./api.js";
import { byId, copyText, downloadText, draw, make, percent } from "./dom.js";
import { History } from "./history.js";
import {
  edited, isPassage, NOTHING, partsOf, tokenAt, withAlternative, withToken,
} from "./passage.js";
import { closesOutside, Settings } from "./settings.js";
import { read, write } from "./storage.js";

const KINDS = [0.8, 0.5, 0.2, 0.05]; // where each colour begins; below the last: a surprise
const ALTERNATIVES = 5;
const TYPING_PAUSE_MS = 1200; // after it, typing is a new piece to undo
const SAVE_PAUSE_MS = 600;
const LETTERS_PER_TOKEN = 8;

/** Return the number of a probability's colour: 0 is the likeliest. */
export function kindOf(probability) {
  const kind = KINDS.findIndex((lowest) => probability >= lowest);
  return kind < 0 ? KINDS.length : kind;
}

/** Return a token as one can see it. */
export function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll(" ", "␣").replaceAll("\t", "⇥");
}

export class Notebook {
  constructor(models) {
    this.models = models;
    this.area = byId("page-text");
    this.mirror = byId("mirror");
    this.settings = new Settings("notebook", byId("notebook-settings"), {
      temperature: 0.8,
      length: 200,
      repetition: 0,
    });
    this.passage = read("notebook", isPassage, NOTHING);
    this.history = new History();
    this.typedAt = -Infinity;
    this.stopper = null;
    this.spans = new Map(); // from token to its coloured part
    this.opened = null; // the token whose alternatives are shown
    this.listen();
    this.show();
  }

  listen() {
    this.area.addEventListener("input", () => this.onInput());
    this.area.addEventListener("keydown", (event) => this.onKey(event));
    this.area.addEventListener("click", (event) => this.onClick(event));
    this.area.addEventListener("pointermove", (event) => this.onPointer(event));
    byId("notebook").addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.onEscape();
    });
    document.addEventListener("pointerdown", (event) => {
      const isInside = byId("sheet").contains(event.target);
      if (!isInside) this.closeAlternatives();
    });
    byId("go-on").addEventListener("click", () => this.goOn());
    byId("stop-page").addEventListener("click", () => this.stopper?.abort());
    byId("undo").addEventListener("click", () => this.undo());
    byId("redo").addEventListener("click", () => this.redo());
    byId("others").addEventListener("click", () => this.openAtCaret());
    byId("copy-page").addEventListener("click", async () => {
      const isCopied = await copyText(this.passage.text);
      this.tell(isCopied ? "Copied." : "The browser did not allow copying.");
    });
    byId("save-page").addEventListener("click", () => {
      downloadText("notebook.txt", this.passage.text);
    });
    byId("clear-page").addEventListener("click", () => this.clear());
    const colours = byId("colours");
    colours.checked = read("colours", (value) => typeof value === "boolean", true);
    colours.addEventListener("change", () => {
      write("colours", colours.checked);
      this.mirror.classList.toggle("plain", !colours.checked);
    });
    this.mirror.classList.toggle("plain", !colours.checked);
    document.querySelectorAll("#notebook details.panel").forEach(closesOutside);
    addEventListener("pagehide", () => this.save());
  }

  // ----------------------------------------------------------------------------------------------
  // Typing

  onInput() {
    const now = performance.now();
    if (now - this.typedAt > TYPING_PAUSE_MS) this.history.remember(this.passage);
    this.typedAt = now;
    this.passage = edited(this.passage, this.area.value);
    this.closeAlternatives();
    this.show();
    this.saveSoon();
  }

  onKey(event) {
    const isCommand = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    if (isCommand && key === "enter") this.goOn();
    else if (isCommand && key === "z" && !event.shiftKey) this.undo();
    else if (isCommand && (key === "y" || (key === "z" && event.shiftKey))) this.redo();
    else if (event.altKey && key === "arrowdown") this.openAtCaret();
    else return;
    event.preventDefault();
  }

  onEscape() {
    if (this.opened) {
      this.closeAlternatives();
      this.area.focus();
    } else {
      this.stopper?.abort();
    }
  }

  /** Replace the passage by an older or newer one, or by nothing. */
  replace(passage) {
    if (!passage) return;
    this.typedAt = -Infinity;
    this.passage = passage;
    this.closeAlternatives();
    this.show();
    this.saveSoon();
  }

  undo() {
    if (!this.stopper) this.replace(this.history.back(this.passage));
  }

  redo() {
    if (!this.stopper) this.replace(this.history.forward(this.passage));
  }

  clear() {
    if (this.stopper || !this.passage.text) return;
    this.history.remember(this.passage);
    this.replace(NOTHING);
    this.area.focus();
  }

  // ----------------------------------------------------------------------------------------------
  // The model goes on

  async goOn() {
    const model = this.models.chosen;
    if (this.stopper || !model) return;
    this.history.remember(this.passage);
    this.typedAt = -Infinity;
    this.closeAlternatives();
    byId("page-trouble").hidden = true;
    const stopper = new AbortController();
    this.stopper = stopper;
    this.showButtons();
    this.tell("The model writes. Escape stops.");
    let finish = "";
    try {
      for await (const piece of streamText(this.request(model), stopper.signal)) {
        this.grow(piece);
        finish = piece.finish || finish;
      }
      this.tell(finish === "stop" ? "The model ended the text here." : "");
    } catch (error) {
      this.tell("");
      if (!stopper.signal.aborted) this.showTrouble(error);
    }
    this.stopper = null;
    this.show();
    this.save();
  }

  request(model) {
    const most = LETTERS_PER_TOKEN * (model.chatgot.context || 1024);
    const prompt = this.passage.text.slice(-most);
    return { model: model.id, prompt, logprobs: ALTERNATIVES, ...this.settings.forRequest() };
  }

  grow({ text, tokens }) {
    let rest = text;
    for (const token of tokens) {
      if (!token.text || !rest.startsWith(token.text)) break;
      this.add(token);
      rest = rest.slice(token.text.length);
    }
    // words whose probabilities are not known
    if (rest) this.add({ text: rest, logprob: null, top: [] });
    const isNearEnd = this.isNearEnd();
    this.area.value = this.passage.text;
    if (isNearEnd) byId("notebook").scrollTop = byId("notebook").scrollHeight;
  }

  add(token) {
    this.passage = withToken(this.passage, token);
    const part = { text: token.text, token: this.passage.tokens.at(-1) };
    this.mirror.insertBefore(this.span(part), this.mirror.lastChild);
  }

  isNearEnd() {
    const view = byId("notebook");
    return view.scrollHeight - view.scrollTop - view.clientHeight < 120;
  }

  // ----------------------------------------------------------------------------------------------
  // Colours

  show() {
    if (this.area.value !== this.passage.text) this.area.value = this.passage.text;
    this.spans.clear();
    const parts = partsOf(this.passage).map((part) => this.span(part));
    // a last empty line has a height only when something is on it
    this.mirror.replaceChildren(...parts, document.createTextNode("\u200b"));
    this.showButtons();
  }

  span({ text, token }) {
    const isKnown = token && Number.isFinite(token.logprob);
    const kind = isKnown ? `token p${kindOf(Math.exp(token.logprob))}` : "";
    const span = make("span", { class: token?.taken ? `${kind} taken` : kind }, text);
    if (token) this.spans.set(token, span);
    return span;
  }

  showButtons() {
    const isBusy = this.stopper !== null;
    this.area.readOnly = isBusy;
    const pressed = document.activeElement;
    byId("go-on").hidden = isBusy;
    byId("stop-page").hidden = !isBusy;
    // the focus stays on the button that is in the place of the pressed one
    if (isBusy && pressed === byId("go-on")) byId("stop-page").focus();
    if (!isBusy && pressed === byId("stop-page")) byId("go-on").focus();
    byId("undo").disabled = isBusy || !this.history.past.length;
    byId("redo").disabled = isBusy || !this.history.future.length;
    byId("others").disabled = isBusy || !this.passage.tokens.length;
  }

  tokenUnder(event) {
    const under = document.elementsFromPoint(event.clientX, event.clientY);
    const span = under.find((element) => element.parentElement === this.mirror);
    if (!span) return null;
    for (const [token, other] of this.spans) {
      if (other === span) return token;
    }
    return null;
  }

  onPointer(event) {
    if (this.stopper || event.pointerType === "touch") return;
    const token = this.tokenUnder(event);
    const words = token && Number.isFinite(token.logprob) ? describe(token) : "";
    this.area.title = words;
    byId("readout").textContent = words;
  }

  // ----------------------------------------------------------------------------------------------
  // Alternatives

  onClick(event) {
    const isSelecting = this.area.selectionStart !== this.area.selectionEnd;
    const token = this.stopper || isSelecting ? null : this.tokenUnder(event);
    if (token?.top.length) this.openAlternatives(token, false);
    else this.closeAlternatives();
  }

  openAtCaret() {
    if (this.stopper) return;
    const caret = this.area.selectionStart;
    const token = tokenAt(this.passage, caret) ?? tokenAt(this.passage, caret - 1);
    if (token?.top.length) this.openAlternatives(token, true);
    else this.tell("Put the cursor on a coloured token first.");
  }

  openAlternatives(token, takesFocus) {
    this.closeAlternatives();
    this.opened = token;
    const span = this.spans.get(token);
    span.classList.add("opened");
    const box = byId("alternatives");
    byId("alternatives-title").textContent = describe(token);
    const items = token.top.slice(0, ALTERNATIVES).map((other) => this.alternative(token, other));
    byId("alternatives-list").replaceChildren(...items);
    box.hidden = false;
    this.placeBelow(span, box);
    if (takesFocus) items[0].querySelector("button").focus();
  }

  // Below the token, and not beyond the sheet's right edge
  placeBelow(span, box) {
    const sheet = byId("sheet").getBoundingClientRect();
    const token = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const left = Math.min(token.left - sheet.left, sheet.width - box.offsetWidth - 8);
    box.style.left = `${Math.max(8, left)}px`;
    box.style.top = `${token.bottom - sheet.top + 6}px`;
    box.scrollIntoView({ block: "nearest" });
  }

  alternative(token, other) {
    const probability = Math.exp(other.logprob);
    const isSame = other.text === token.text;
    const bar = draw("svg", { class: "share", "aria-hidden": "true", preserveAspectRatio: "none" });
    bar.append(draw("rect", { width: `${100 * probability}%`, height: "100%", rx: 2 }));
    const button = make(
      "button",
      {
        type: "button",
        "aria-current": isSame ? "true" : null,
        click: () => this.take(token, other),
        keydown: (event) => this.onAlternativeKey(event),
      },
      make("code", {}, visible(other.text)),
      bar,
      make("span", {}, percent(probability)),
    );
    return make("li", {}, button);
  }

  onAlternativeKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...byId("alternatives-list").querySelectorAll("button")];
    const place = buttons.indexOf(event.currentTarget) + step;
    buttons[(place + buttons.length) % buttons.length].focus();
  }

  take(token, other) {
    this.history.remember(this.passage);
    this.replace(withAlternative(this.passage, token, other));
    this.area.focus();
    this.area.setSelectionRange(this.passage.text.length, this.passage.text.length);
    this.goOn();
  }

  closeAlternatives() {
    if (!this.opened) return;
    this.spans.get(this.opened)?.classList.remove("opened");
    this.opened = null;
    byId("alternatives").hidden = true;
  }

  // ----------------------------------------------------------------------------------------------

  tell(text) {
    byId("notebook-status").textContent = text;
  }

  showTrouble(error) {
    byId("page-trouble").textContent = sentenceOf(error);
    byId("page-trouble").hidden = false;
    if (error.status === 401) byId("key-dialog").showModal();
  }

  saveSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), SAVE_PAUSE_MS);
  }

  // Where all of it does not fit, the text without the alternatives often does
  save() {
    clearTimeout(this.timer);
    if (write("notebook", this.passage)) return;
    const { text, tokens } = this.passage;
    const smaller = { text, tokens: tokens.map((token) => ({ ...token, top: [] })) };
    if (write("notebook", smaller) || write("notebook", { text, tokens: [] })) return;
    this.tell("This browser's storage is full or forbidden: the text is lost when you leave.");
  }
}

function describe(token) {
  return `“${visible(token.text)}” had ${percent(Math.exp(token.logprob))}`;
}
