// The page starts here: what model this is, the two tabs, and then the model itself.

import { about, logitsOf, sentenceOf, start, streamChat, streamText } from "./api.js";
import { Chat } from "./chat.js";
import { byId, grouped } from "./dom.js";
import { Notebook } from "./notebook.js";
import { read, write } from "./storage.js";
import { Tabs } from "./tabs.js";

const VIEWS = ["chat", "notebook"];

function describe() {
  const bits = about.val_bits_per_byte;
  const inBits = bits === null ? "" : ` (${bits.toFixed(3)} bits per byte)`;
  const loss = about.val_loss === null ? [] : [`loss ${about.val_loss.toFixed(2)}${inBits}`];
  const text = about.data_sha256 ? [`text ${about.data_sha256.slice(0, 8)}`] : [];
  const facts = [
    about.run_id,
    `${grouped(about.parameters)} parameters`,
    `step ${grouped(about.step)}`,
    ...loss,
    ...text,
  ];
  byId("facts").textContent = facts.join("\u00a0· ");
  document.title = `${about.run_id} · ChatGoT`;
}

// What chat and notebook of the server's page know of a model
function onlyModel() {
  const { run_id: run, step, val_loss: loss, speakers, user, character } = about;
  const known = { run_id: run, step, val_loss: loss, speakers, user, character };
  const model = { id: run, chatgot: { ...known, context: about.model.max_seq_length } };
  return Object.assign(new EventTarget(), { list: [model], chosen: model });
}

async function open() {
  describe();
  const models = onlyModel();
  new Chat(models);
  new Notebook(models);
  const usual = about.speakers.length ? "chat" : "notebook";
  const tabs = new Tabs(VIEWS, (view) => write("view", view));
  tabs.show(read("view", (view) => VIEWS.includes(view), usual));
  try {
    await start();
  } catch (error) {
    byId("broken").textContent = sentenceOf(error);
    byId("broken").hidden = false;
    return;
  }
  // for whoever wants the model in the browser's console
  globalThis.chatgot = { about, logitsOf, streamChat, streamText };
  document.documentElement.dataset.ready = "";
}

open();
