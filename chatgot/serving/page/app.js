// The page starts here: the tabs, the models, and what happens when the server is gone.

import { setKey, Trouble } from "./api.js";
import { Chat } from "./chat.js";
import { byId } from "./dom.js";
import { Models } from "./models.js";
import { Notebook } from "./notebook.js";
import { read, write } from "./storage.js";
import { Watch } from "./watch.js";

const VIEWS = ["chat", "notebook", "watch"];
const REFRESH_INTERVAL_MS = 10_000; // a run in progress saves checkpoints while one talks

const tabs = VIEWS.map((view) => byId(`tab-${view}`));
const models = new Models(byId("model"));
const watch = new Watch((runId) => talkToNewest(runId));
let chat = null;

function showView(view, takesFocus = false) {
  const wanted = VIEWS.includes(view) ? view : "chat";
  VIEWS.forEach((name, i) => {
    const isShown = name === wanted;
    byId(name).hidden = !isShown;
    tabs[i].setAttribute("aria-selected", String(isShown));
    tabs[i].tabIndex = isShown ? 0 : -1;
    if (isShown && takesFocus) tabs[i].focus();
  });
  write("view", wanted);
  watch.open(wanted === "watch");
}

function onTabKey(event) {
  const here = tabs.indexOf(event.currentTarget);
  const to = {
    ArrowRight: (here + 1) % tabs.length,
    ArrowLeft: (here + tabs.length - 1) % tabs.length,
    Home: 0,
    End: tabs.length - 1,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  showView(VIEWS[to], true);
}

async function talkToNewest(runId) {
  await refresh();
  models.choose(`${runId}:latest`);
  showView("chat");
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
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => showView(VIEWS[i]));
    tab.addEventListener("keydown", onTabKey);
  });
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
showView(read("view", (value) => typeof value === "string", "chat"));
await refresh();
chat = new Chat(models);
new Notebook(models);
document.documentElement.dataset.ready = "";
