// The chat: what happens when somebody speaks, stops, retries, edits, or lets the room talk.

import { canFindCopies, findCopies, sentenceOf, streamChat } from "./api.js";
import { CastBar, usualCast } from "./cast.js";
import {
  forgetConversation, keepConversation, listConversations, newConversation, titleOf,
} from "./conversations.js";
import { byId, copyText, downloadText, grouped, make } from "./dom.js";
import { makeDrawer } from "./drawer.js";
import { Messages } from "./messages.js";
import { closesOutside, Settings } from "./settings.js";
import { addTurn, lastId, pathTo, removeTurn, shownPath, walk } from "./tree.js";

const NEAR_THE_END_PX = 90; // who is not further up goes on seeing the newest words
const LETTERS_PER_TOKEN = 8; // more than any vocabulary has on average
const SAVE_INTERVAL_MS = 1000;

export class Chat {
  constructor(models) {
    this.models = models;
    this.settings = new Settings("chat", byId("chat-settings"), {
      temperature: 0.8,
      length: 300,
      repetition: 0,
    });
    this.cast = new CastBar(models, () => this.onCast());
    this.messages = new Messages(byId("log"), {
      copy: (turn) => this.tellCopied(turn.text),
      retry: (turn) => this.retry(turn),
      mark: canFindCopies && ((turn) => this.markCopies(turn)),
      edit: (turn) => this.edit(turn),
      walk: (turn, by) => this.walk(turn, by),
    });
    this.stopper = null; // an AbortController while an answer grows
    this.turnsToGo = 0; // how many more the room speaks by itself
    this.waitingLine = ""; // what you said while somebody else spoke
    this.saved = 0;
    this.listen();
    this.open(listConversations()[0] ?? newConversation(usualCast(models.chosen)));
    models.addEventListener("change", (event) => this.onModel(event.detail.before));
  }

  listen() {
    this.line = byId("line");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.say();
    });
    this.line.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.say();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("next").addEventListener("click", () => this.letTalk(1));
    byId("let-talk").addEventListener("click", () => this.letTalk(Number(byId("turns").value)));
    byId("chat").addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
    });
    byId("again").addEventListener("click", () => this.answer(lastId(this.tree)));
    byId("new").addEventListener("click", () => this.startNew());
    byId("copy-all").addEventListener("click", () => this.tellCopied(this.asText()));
    byId("download").addEventListener("click", () => {
      downloadText("conversation.txt", this.asText());
    });
    this.closePast = makeDrawer(byId("past-button"), byId("past"));
    document.querySelectorAll("#chat details.panel").forEach(closesOutside);
    addEventListener("pagehide", () => this.save());
  }

  get tree() {
    return this.conversation.tree;
  }

  get people() {
    return this.conversation.cast;
  }

  // ----------------------------------------------------------------------------------------------
  // Conversations

  open(conversation) {
    this.stop();
    this.conversation = conversation;
    this.messages.forgetHues();
    this.cast.show(conversation.cast);
    this.hideTrouble();
    this.show();
    this.scrollToEnd();
  }

  /** Begin a new conversation between the same people. */
  startNew() {
    this.save();
    this.open(newConversation(structuredClone(this.people)));
    this.closePast();
    this.line.focus();
  }

  save() {
    const isEmpty = this.tree.next === 1;
    this.saved = performance.now();
    if (isEmpty) return;
    this.conversation.when = Date.now();
    if (!keepConversation(this.conversation)) {
      this.tell("This browser's storage is full or forbidden: this is lost when you leave.");
    }
  }

  listPast() {
    const items = listConversations().map((conversation) => this.pastItem(conversation));
    byId("past-list").replaceChildren(...items);
  }

  pastItem(conversation) {
    const title = titleOf(conversation);
    const isCurrent = conversation.id === this.conversation.id;
    const open = () => {
      this.open(conversation);
      this.closePast();
    };
    const forget = () => {
      forgetConversation(conversation.id);
      if (isCurrent) this.open(newConversation(structuredClone(this.people)));
      else this.listPast();
      byId("new").focus();
    };
    const button = (kind, action, attributes, words) =>
      make("button", { type: "button", class: kind, click: action, ...attributes }, words);
    const opener = button("title", open, { "aria-current": isCurrent ? "true" : null }, title);
    const forgetter = button("forget", forget, { "aria-label": `Forget ${title}` }, "×");
    return make("li", {}, opener, forgetter);
  }

  // ----------------------------------------------------------------------------------------------
  // What people do

  say() {
    const text = this.line.value.trim();
    const isRoom = this.people.mode === "room";
    if (!text || (this.stopper && !isRoom)) return;
    if (!this.people.user) {
      this.tell("Choose who you are first.");
      this.cast.user.input.focus();
      return;
    }
    this.line.value = "";
    if (this.stopper) {
      this.waitingLine = this.waitingLine ? `${this.waitingLine}\n${text}` : text;
      this.tell("Your line comes next.");
      return;
    }
    this.addLine(text);
    this.letTalk(1);
  }

  addLine(text) {
    addTurn(this.tree, lastId(this.tree), { by: "you", name: this.people.user, text });
  }

  /** Mark in a turn what stands in the training text, and say how much that is. */
  async markCopies(turn) {
    try {
      const found = await findCopies(this.models.chosen.id, [turn.text]);
      this.messages.mark(turn, found.copies[0]);
      const share = Math.round(100 * found.copied_share);
      this.tell(`${share} % copied: ${found.least} or more characters of the training text.`);
    } catch (error) {
      this.tell(sentenceOf(error));
    }
  }

  async retry(turn) {
    if (this.stopper) return;
    const whole = this.answer(turn.parent);
    byId("stop").focus(); // the pressed button is gone
    await whole;
    const { activeElement } = document;
    if (activeElement === document.body || activeElement === this.line) this.messages.focusLast();
  }

  edit(turn) {
    if (this.stopper) return;
    this.messages.edit(turn, (text) => {
      const words = text?.trim();
      if (words && words !== turn.text) {
        addTurn(this.tree, turn.parent, { by: "you", name: turn.name, text: words });
        this.letTalk(1);
      } else {
        this.show();
      }
      this.line.focus();
    });
  }

  walk(turn, by) {
    if (this.stopper) return;
    const sibling = walk(this.tree, turn.id, by);
    if (!sibling) return;
    this.show();
    this.save();
    this.messages.focusBranch(sibling.id, by);
  }

  /** Let the others speak, one after the other. */
  async letTalk(turns) {
    this.turnsToGo = Math.min(Math.max(1, Math.round(turns) || 1), 50);
    while (this.turnsToGo > 0) {
      this.turnsToGo -= 1;
      const isWhole = await this.answer(lastId(this.tree));
      if (this.waitingLine) {
        this.addLine(this.waitingLine);
        this.waitingLine = "";
        if (isWhole) this.turnsToGo = Math.max(this.turnsToGo, 1);
        this.show();
        this.save();
      }
      if (!isWhole) this.turnsToGo = 0;
    }
  }

  stop() {
    this.turnsToGo = 0;
    this.stopper?.abort();
  }

  // ----------------------------------------------------------------------------------------------
  // Answers

  /** Let the model answer below a turn; return whether the answer became whole. */
  async answer(parent) {
    const model = this.models.chosen;
    if (this.stopper || !model || !this.canAnswer()) return false;
    this.hideTrouble();
    const stopper = new AbortController();
    this.stopper = stopper;
    const { tree } = this;
    const request = this.request(tree, parent, model.id);
    const turn = addTurn(tree, parent, {
      by: "model", name: request.character === "auto" ? "" : request.character, text: "", ended: "",
    });
    Object.assign(turn, { model: model.id, step: model.chatgot.step });
    this.show(turn.id);
    this.scrollToEnd();
    try {
      for await (const piece of streamChat(request, stopper.signal)) this.grow(tree, turn, piece);
    } catch (error) {
      turn.ended = stopper.signal.aborted ? "stopped" : "broken";
      if (!stopper.signal.aborted) this.showTrouble(error);
    }
    this.finish(tree, turn);
    return turn.ended === "" || turn.ended === "length";
  }

  canAnswer() {
    if (this.people.mode === "room" || this.people.character) return true;
    this.tell("Choose who answers first.");
    this.cast.character.input.focus();
    return false;
  }

  request(tree, parent, model) {
    const { user, character, mode, scene } = this.people;
    const retry = tree.turns[parent].children.length;
    const who = mode === "room" ? this.whoIsNext(tree.turns[parent].name) : { character };
    const messages = this.newestMessages(pathTo(tree, parent));
    if (scene.trim()) messages.unshift({ role: "system", content: scene.trim() });
    return { model, messages, user_name: user, ...who, ...this.settings.forRequest(retry) };
  }

  // In an empty room anyone may speak. Nobody answers himself, if somebody else is there: what one
  // says twice in a row is one speech in the training text
  whoIsNext(last) {
    const guests = this.people.room.filter((name) => name !== this.people.user);
    const others = guests.filter((name) => name !== last);
    const room = others.length ? others : guests;
    return room.length ? { character: "auto", room } : { character: "auto" };
  }

  // The model sees at most its context: of a long conversation, only the end is sent
  newestMessages(path) {
    const turns = path.filter((turn) => turn.text);
    let room = LETTERS_PER_TOKEN * (this.models.chosen.chatgot.context || 1024);
    let from = turns.length;
    while (from > 0 && room > 0) {
      from -= 1;
      room -= turns[from].text.length;
    }
    return turns.slice(from).map((turn) => ({
      role: turn.by === "you" ? "user" : "assistant",
      name: turn.name,
      content: turn.text,
    }));
  }

  grow(tree, turn, piece) {
    turn.name ||= piece.name;
    turn.text += piece.text;
    turn.step = piece.step ?? turn.step;
    if (piece.finish === "length") turn.ended = "length";
    if (tree !== this.tree) return; // another conversation was opened meanwhile
    const isNearEnd = this.isNearEnd();
    this.messages.grow(turn);
    if (turn.name) this.tell(`${turn.name} is speaking. Escape stops.`);
    if (isNearEnd) this.scrollToEnd();
    if (performance.now() - this.saved > SAVE_INTERVAL_MS) this.save();
  }

  finish(tree, turn) {
    turn.text = turn.text.trimEnd();
    const isNothing = turn.text === "" && turn.ended !== "";
    if (isNothing) removeTurn(tree, turn.id);
    this.stopper = null;
    if (tree !== this.tree) return;
    const isNearEnd = this.isNearEnd();
    this.tell("");
    this.save();
    this.show();
    if (isNearEnd) this.scrollToEnd();
    if (this.models.chosen?.chatgot.checkpoint === "latest") this.models.refresh().catch(() => {});
  }

  // ----------------------------------------------------------------------------------------------
  // What is seen

  show(growing = null) {
    const path = shownPath(this.tree);
    const isRoom = this.people.mode === "room";
    const isBusy = growing !== null;
    byId("log").setAttribute("aria-busy", String(isBusy));
    this.messages.show(this.tree, path, growing);
    byId("welcome").hidden = path.length > 0;
    if (!path.length) this.showWelcome();
    const wasStopping = document.activeElement === byId("stop");
    byId("stop").hidden = !isBusy;
    // a key stays where one types; a finger does not call the keyboard up
    if (wasStopping && !isBusy && matchMedia("(pointer: fine)").matches) this.line.focus();
    byId("send").hidden = isBusy && !isRoom;
    byId("room-controls").hidden = !isRoom;
    byId("next").disabled = isBusy;
    byId("let-talk").disabled = isBusy;
    const who = this.people.user || "yourself";
    this.line.placeholder = `Speak as ${who}`;
    this.listPast();
  }

  showWelcome() {
    const { mode, user, character, room } = this.people;
    const others = mode === "room" ? room.filter((name) => name !== user) : [character];
    const names = others.filter(Boolean).join(", ");
    const verb = mode === "room" ? "are in the room." : "answers.";
    byId("welcome-title").textContent = names ? `${names} ${verb}` : "Who speaks?";
    const invitation = user ? `You are ${user}. Say something.` : "Choose two names above.";
    byId("welcome-you").textContent = invitation;
    byId("ideas").replaceChildren(...this.ideas());
  }

  ideas() {
    const speakers = this.models.chosen?.chatgot.speakers ?? [];
    const pairs = speakers.filter(({ partner }) => partner).slice(0, 8);
    const { user, character } = this.people;
    const isSame = ({ name, partner }) => user === partner && character === name;
    const seen = new Set();
    const fresh = pairs.filter((speaker) => {
      const pair = [speaker.name, speaker.partner].sort().join("\n");
      const isNew = !seen.has(pair) && !isSame(speaker);
      seen.add(pair);
      return isNew;
    });
    return fresh.slice(0, 4).map(({ name, partner }) => {
      const choose = () => {
        this.cast.change({ mode: "pair", user: partner, character: name });
        this.line.focus();
      };
      const words = `Talk to ${name} as ${partner}`;
      return make("li", {}, make("button", { type: "button", click: choose }, words));
    });
  }

  onCast() {
    if (!this.stopper) this.show();
    this.save();
  }

  onModel(before) {
    const model = this.models.chosen;
    const isNewer = before && model?.id === before.id && model.chatgot.step > before.chatgot.step;
    if (isNewer) {
      const step = grouped(model.chatgot.step);
      this.tell(`The run has saved step ${step}: the next answer comes from it.`);
    }
    if (this.stopper) return;
    // nothing is said yet, so the names may follow the model
    if (this.tree.next === 1 && before?.chatgot.run_id !== model?.chatgot.run_id) {
      this.conversation.cast = usualCast(model);
      this.cast.show(this.people);
    }
    this.show();
  }

  tell(text) {
    if (byId("chat-status").textContent !== text) byId("chat-status").textContent = text;
  }

  async tellCopied(text) {
    const isCopied = await copyText(text);
    this.tell(isCopied ? "Copied." : "The browser did not allow copying.");
  }

  showTrouble(error) {
    byId("trouble-text").textContent = sentenceOf(error);
    byId("trouble").hidden = false;
    if (error.status === 401) byId("key-dialog").showModal();
  }

  hideTrouble() {
    byId("trouble").hidden = true;
  }

  isNearEnd() {
    const scroll = byId("scroll");
    return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR_THE_END_PX;
  }

  scrollToEnd() {
    byId("scroll").scrollTop = byId("scroll").scrollHeight;
  }

  /** Return the conversation as the training text writes one. */
  asText() {
    return shownPath(this.tree).map((turn) => `${turn.name}:\n${turn.text}\n`).join("\n");
  }
}
