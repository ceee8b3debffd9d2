// Which turns does a conversation have? A tree: a retry and an edit add a sibling, and the chosen
// child of each turn leads to the path that is shown. Plain data, so that it can be stored as JSON.

const ROOT = 0;

/** Return a conversation without turns. */
export function newTree() {
  return { next: 1, turns: { [ROOT]: { id: ROOT, parent: null, children: [], chosen: 0 } } };
}

/** Add a turn below `parent`, choose it, and return it. `fields`: by, name, text and what else. */
export function addTurn(tree, parent, fields) {
  const turn = { ...fields, id: tree.next, parent, children: [], chosen: 0 };
  tree.next += 1;
  tree.turns[turn.id] = turn;
  const siblings = tree.turns[parent].children;
  siblings.push(turn.id);
  tree.turns[parent].chosen = siblings.length - 1;
  return turn;
}

/** Remove a turn without children; the sibling before it is chosen. */
export function removeTurn(tree, id) {
  const parent = tree.turns[tree.turns[id].parent];
  parent.children = parent.children.filter((child) => child !== id);
  parent.chosen = Math.max(0, Math.min(parent.chosen, parent.children.length - 1));
  delete tree.turns[id];
}

/** Return the turns that are shown, the first one first. */
export function shownPath(tree) {
  const path = [];
  let turn = tree.turns[ROOT];
  while (turn.children.length) {
    turn = tree.turns[turn.children[turn.chosen]];
    path.push(turn);
  }
  return path;
}

/** Return the turns from the first one to this one. */
export function pathTo(tree, id) {
  const path = [];
  for (let turn = tree.turns[id]; turn.id !== ROOT; turn = tree.turns[turn.parent]) {
    path.unshift(turn);
  }
  return path;
}

/** Return the id of the last shown turn, or the root's. */
export function lastId(tree) {
  return shownPath(tree).at(-1)?.id ?? ROOT;
}

/** Return which sibling a turn is, from 1, and of how many. */
export function placeOf(tree, id) {
  const siblings = tree.turns[tree.turns[id].parent].children;
  return { place: siblings.indexOf(id) + 1, count: siblings.length };
}

/** Choose the sibling `by` places further; return it, or null where there is none. */
export function walk(tree, id, by) {
  const parent = tree.turns[tree.turns[id].parent];
  const place = parent.children.indexOf(id) + by;
  if (place < 0 || place >= parent.children.length) return null;
  parent.chosen = place;
  return tree.turns[parent.children[place]];
}

/** Return whether a stored value is a whole tree: each link there and back, ids that only grow. */
export function isTree(value) {
  if (!Number.isInteger(value?.next) || typeof value.turns !== "object") return false;
  if (value.turns?.[ROOT]?.parent !== null) return false;
  return Object.entries(value.turns).every(([key, turn]) => isTurn(value, Number(key), turn));
}

function isTurn(tree, id, turn) {
  if (turn?.id !== id || id >= tree.next || !Array.isArray(turn.children)) return false;
  const { length } = turn.children;
  const choiceFits = Number.isInteger(turn.chosen) && turn.chosen >= 0;
  if (!choiceFits || turn.chosen > Math.max(0, length - 1)) return false;
  if (new Set(turn.children).size < length) return false;
  // a child's id is greater than its parent's, so that no walk goes round in a circle
  const linked = turn.children.every((child) => child > id && tree.turns[child]?.parent === id);
  if (!linked || id === ROOT) return linked;
  const hasWords = typeof turn.name === "string" && typeof turn.text === "string";
  const isChild = Boolean(tree.turns[turn.parent]?.children?.includes(id));
  return hasWords && isChild && (turn.by === "you" || turn.by === "model");
}
