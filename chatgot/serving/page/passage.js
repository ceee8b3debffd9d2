// What is known of each token of a text? A passage has the text and its tokens; it never changes,
// each edit returns another one. A token: {from, to, logprob, top: [{text, logprob}], taken};
// from and to count UTF-16 units, as JavaScript's strings do.

/** A passage without text. */
export const NOTHING = Object.freeze({ text: "", tokens: [] });

/** Return the passage after its text was edited: tokens that the edit touched are forgotten. */
export function edited(passage, text) {
  const before = passage.text;
  const shorter = Math.min(before.length, text.length);
  let head = 0;
  while (head < shorter && before[head] === text[head]) head += 1;
  let tail = 0;
  while (tail < shorter - head && before.at(-1 - tail) === text.at(-1 - tail)) tail += 1;
  const shift = text.length - before.length;
  const tokens = [];
  for (const token of passage.tokens) {
    if (token.to <= head) tokens.push(token);
    else if (token.from >= before.length - tail) tokens.push(moved(token, shift));
  }
  return { text, tokens };
}

function moved(token, shift) {
  return { ...token, from: token.from + shift, to: token.to + shift };
}

/** Return the passage with a new token, {text, logprob, top}, at its end. */
export function withToken(passage, token) {
  const from = passage.text.length;
  const text = passage.text + token.text;
  return { text, tokens: [...passage.tokens, { ...token, from, to: text.length }] };
}

/** Return the passage before a token, and the alternative in its place. */
export function withAlternative(passage, token, alternative) {
  const kept = {
    text: passage.text.slice(0, token.from),
    tokens: passage.tokens.filter((other) => other.to <= token.from),
  };
  return withToken(kept, { ...alternative, top: token.top, taken: true });
}

/** Return the token at a place of the text, or null where the text was typed. */
export function tokenAt(passage, place) {
  let low = 0;
  let high = passage.tokens.length - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    const token = passage.tokens[middle];
    if (place < token.from) high = middle - 1;
    else if (place >= token.to) low = middle + 1;
    else return token;
  }
  return null;
}

/** Return the text in parts, each with its token or, where it was typed, with null. */
export function partsOf(passage) {
  const parts = [];
  let at = 0;
  for (const token of passage.tokens) {
    if (token.from > at) parts.push({ text: passage.text.slice(at, token.from), token: null });
    parts.push({ text: passage.text.slice(token.from, token.to), token });
    at = token.to;
  }
  if (at < passage.text.length) parts.push({ text: passage.text.slice(at), token: null });
  return parts;
}

/** Return whether a stored value is a passage: tokens in order, each inside the text. */
export function isPassage(value) {
  if (typeof value?.text !== "string" || !Array.isArray(value.tokens)) return false;
  let at = 0;
  for (const token of value.tokens) {
    const isNext = token?.from >= at && token.to > token.from && token.to <= value.text.length;
    if (!isNext || !Array.isArray(token.top)) return false;
    at = token.to;
  }
  return true;
}
