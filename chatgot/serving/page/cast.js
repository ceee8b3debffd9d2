// Who speaks? You and one character, or you and a room of them.

import { Combobox } from "./combobox.js";
import { byId, grouped, make } from "./dom.js";

/** Return the cast that a model's text suggests. */
export function usualCast(model) {
  const { user = "", character = "" } = model?.chatgot ?? {};
  return { mode: "pair", user, character, room: [], scene: "" };
}

/** The bar above the conversation, where names are chosen. It changes `cast` in place. */
export class CastBar {
  constructor(models, onChange) {
    this.models = models;
    this.onChange = onChange;
    this.cast = usualCast(null);
    const options = () => this.names();
    this.user = new Combobox({
      label: "You are",
      options,
      onPick: (name) => this.change({ user: name }),
    });
    this.character = new Combobox({
      label: "Answered by",
      options,
      onPick: (name) => this.change({ character: name }),
    });
    this.guest = new Combobox({
      label: "In the room",
      options: () => this.names().filter((option) => !this.cast.room.includes(option.name)),
      onPick: (name) => this.invite(name),
      placeholder: "add a character",
      keeps: false,
    });
    this.chips = make("ul", { class: "chips", "aria-label": "Characters in the room" });
    byId("cast").append(this.user.element, this.character.element, this.guest.element, this.chips);
    this.scene = byId("scene");
    this.scene.addEventListener("change", () => this.change({ scene: this.scene.value }));
    for (const input of document.querySelectorAll("input[name=mode]")) {
      input.addEventListener("change", () => this.change({ mode: input.value }));
    }
  }

  names() {
    const speakers = this.models.chosen?.chatgot.speakers ?? [];
    return speakers.map(({ name, lines }) => ({ name, note: `${grouped(lines)} lines` }));
  }

  /** Show another cast. */
  show(cast) {
    this.cast = cast;
    this.user.set(cast.user);
    this.character.set(cast.character);
    this.scene.value = cast.scene;
    byId(`mode-${cast.mode}`).checked = true;
    const isRoom = cast.mode === "room";
    this.character.element.hidden = isRoom;
    this.guest.element.hidden = !isRoom;
    this.chips.hidden = !isRoom || cast.room.length === 0;
    this.chips.replaceChildren(...cast.room.map((name) => this.chip(name)));
  }

  chip(name) {
    const leave = () => {
      this.change({ room: this.cast.room.filter((other) => other !== name) });
      this.guest.input.focus();
    };
    const label = `Send ${name} out`;
    const button = make("button", { type: "button", "aria-label": label, click: leave }, "×");
    return make("li", {}, name, button);
  }

  invite(name) {
    if (!this.cast.room.includes(name)) this.change({ room: [...this.cast.room, name] });
  }

  change(fields) {
    Object.assign(this.cast, fields);
    // a room begins with the two who talk already, and with whom they talk most
    if (fields.mode === "room" && !this.cast.room.length) this.cast.room = this.firstGuests();
    this.show(this.cast);
    this.onChange();
  }

  firstGuests() {
    const { user, character } = this.cast;
    const speakers = this.models.chosen?.chatgot.speakers ?? [];
    const partnerOf = (name) => speakers.find((speaker) => speaker.name === name)?.partner;
    const most = speakers.slice(0, 6).map((speaker) => speaker.name);
    const names = [character, partnerOf(character), partnerOf(user), ...most];
    return [...new Set(names)].filter((name) => name && name !== user).slice(0, 3);
  }
}
