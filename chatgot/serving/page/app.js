// The page starts here: the tabs, the models, and what happens when the server is gone.

import { setKey, Trouble } from "./api.js";
import { Chat } from "./chat.js";
import { byId } from "./dom.js";
import { Models } from "./models.js";
import { Notebook } from "./notebook.js";
import { read, write } from "./storage.js";
import { Tabs } from "./tabs.js";
import { Watch } from "./watch.js";

const VIEWS = ["chat", "notebook", "watch"];
const REFRESH_INTERVAL_MS = 10_000; // a run in progress saves checkpoints while one talks

const models = new Models(byId("model"));
const watch = new Watch((runId) => talkToNewest(runId));
const tabs = new Tabs(VIEWS, (view) => {
  write("view", view);
  watch.open(view === "watch");
});
let chat = null;

async function talkToNewest(runId) {
  await refresh();
  models.choose(`${runId}:latest`);
  tabs.show("chat");
  chat.startNew();
}

async function refresh() {
  try {
    await models.refresh();
    byId("gone").hidden = true;
    byId("no-model").hidden = models.list.length > 0;
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    byId("gone-text").textContent = error.message;
    byId("gone").hidden = false;
    if (error.status === 401 && !byId("key-dialog").open) byId("key-dialog").showModal();
  }
}

function listen() {
  byId("gone-again").addEventListener("click", refresh);
  byId("key-dialog").addEventListener("close", () => {
    setKey(byId("key").value);
    if (byId("key-dialog").returnValue === "use") refresh();
  });
  const refreshIfSeen = () => {
    if (!document.hidden && !byId("key-dialog").open) refresh();
  };
  setInterval(refreshIfSeen, REFRESH_INTERVAL_MS);
  addEventListener("focus", refreshIfSeen);
}

listen();
tabs.show(read("view", (value) => typeof value === "string", "chat"));
await refresh();
chat = new Chat(models);
new Notebook(models);
document.documentElement.dataset.ready = "";
