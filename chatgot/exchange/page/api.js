// What does the model in this file say? It has the names of the server page's api.js, so that chat
// and notebook are the same there and here.

import { byId } from "./dom.js";

const WORKER_SLICE_MS = 30;
const PAGE_SLICE_MS = 12; // in the page itself: it must go on moving

/** A failure, said as one plain sentence. */
export class Trouble extends Error {}

/** Return what to say of an error. */
export function sentenceOf(error) {
  const isTrouble = error instanceof Trouble;
  return isTrouble ? error.message : `Something went wrong in this page: ${error.message}`;
}

/** What this file says of its model: name, shape, speakers, weights. */
export const about = JSON.parse(byId("about").textContent);

/** Whether this page can say what of a text is copied: it has no training text. */
export const canFindCopies = false;

/** Nobody asks this here; the server's page has it. */
export function findCopies() {
  throw new Trouble("This page has no training text to compare with.");
}

let port = null;
let asked = 0;
const readers = new Map(); // from the id of what was asked to who takes the answer

/** Load the weights, in a worker where the browser allows one. Raises Trouble. */
export async function start() {
  if (document.characterSet !== "windows-1252") {
    throw new Trouble(
      `This file was opened as ${document.characterSet}. Open it from disk, not through a server.`,
    );
  }
  const text = byId("weights").textContent;
  byId("weights").remove();
  if (await begin(workerPort(), text)) return;
  if (!(await begin(pagePort(), text))) throw new Trouble("This browser cannot run the model.");
}

// A worker may be forbidden at once, or fail later
function workerPort() {
  const source = `"use strict";(${chatgotEngine})(self, ${WORKER_SLICE_MS});`;
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  try {
    return new Worker(address);
  } catch {
    return null;
  }
}

function pagePort() {
  const { port1, port2 } = new MessageChannel();
  chatgotEngine(port2, PAGE_SLICE_MS);
  return port1;
}

async function begin(candidate, text) {
  if (!candidate) return false;
  port = candidate;
  port.onmessage = ({ data }) => readers.get(data.id)?.(data);
  const broken = new Promise((resolve) => {
    port.onerror = () => resolve(false);
  });
  const load = async () => {
    for await (const piece of ask({ job: "load", about, text })) if (piece.finish) return true;
    return false;
  };
  return Promise.race([load(), broken]);
}

/** Yield the pieces of an answer: {name, text, finish}. */
export async function* streamChat(request, signal) {
  for await (const piece of ask({ job: "chat", request }, signal)) yield piece;
}

/** Yield the pieces of a text that goes on: {text, tokens, finish}. */
export async function* streamText({ prompt, logprobs = null, ...controls }, signal) {
  const request = { prompt, controls, top: logprobs };
  for await (const piece of ask({ job: "text", request }, signal)) yield piece;
}

/** Return the logits after each of the ids, which fit into the context. */
export async function logitsOf(ids) {
  for await (const piece of ask({ job: "logits", ids })) return piece.logits;
  return [];
}

async function* ask(message, signal = null) {
  asked += 1;
  const id = asked;
  let waiting = [];
  let wake = null;
  const put = (data) => {
    waiting.push(data);
    wake?.();
  };
  const abort = () => put({ aborted: true });
  readers.set(id, put);
  signal?.addEventListener("abort", abort);
  try {
    port.postMessage({ id, ...message });
    for (;;) {
      if (!waiting.length) await new Promise((resolve) => (wake = resolve));
      const news = waiting;
      waiting = [];
      for (const { pieces = [], done, failed, aborted } of news) {
        if (aborted) throw new DOMException("stopped", "AbortError");
        if (failed) throw new Trouble(`This file cannot be used: ${failed}.`);
        yield* pieces;
        if (done) return;
      }
    }
  } finally {
    readers.delete(id);
    signal?.removeEventListener("abort", abort);
    port.postMessage({ id, job: "stop" });
  }
}
