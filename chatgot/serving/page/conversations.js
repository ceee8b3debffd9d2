// Which conversations does this browser keep? Each under a name of its own: one that is damaged, or
// written by another tab at the same time, does not touch the others.

import { forget, namesOf, read, write } from "./storage.js";
import { isTree, newTree, shownPath } from "./tree.js";

const START = "conversation:";
const isString = (value) => typeof value === "string";

/** Return a new conversation between the same people. */
export function newConversation(cast) {
  const id = crypto.getRandomValues(new Uint32Array(2)).join("-");
  return { id, when: Date.now(), cast, tree: newTree() };
}

/** Return all conversations that can be read, the latest first. */
export function listConversations() {
  return namesOf(START)
    .map((name) => read(name, isConversation, null))
    .filter((conversation) => conversation !== null)
    .sort((a, b) => b.when - a.when);
}

/** Keep a conversation; when there is no room, the oldest others go. Return whether it is kept. */
export function keepConversation(conversation) {
  const name = START + conversation.id;
  if (write(name, conversation)) return true;
  const others = listConversations().filter((other) => other.id !== conversation.id);
  while (others.length) {
    forget(START + others.pop().id);
    if (write(name, conversation)) return true;
  }
  return false;
}

/** Forget a conversation. */
export function forgetConversation(id) {
  forget(START + id);
}

/** Return a conversation's first words, for a list. */
export function titleOf(conversation) {
  const first = shownPath(conversation.tree).find((turn) => turn.text);
  return first ? `${first.name}: ${first.text.split("\n")[0]}` : "Nothing said yet";
}

function isConversation(value) {
  const isKnown = isString(value?.id) && Number.isFinite(value.when);
  return isKnown && isCast(value.cast) && isTree(value.tree);
}

function isCast(cast) {
  const names = [cast?.user, cast?.character, cast?.scene];
  const isMode = cast?.mode === "pair" || cast?.mode === "room";
  return isMode && names.every(isString) && Array.isArray(cast.room) && cast.room.every(isString);
}
