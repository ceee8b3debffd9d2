// Text to ids and back, by byte-level BPE: a text is cut into words, and the bytes of each word are
// merged, always the pair that was merged first in training.

import { END_OF_TEXT_ID, splitDocuments } from "./vocabulary.js";

const LONGEST_PIECE = 1 << 16; // characters that are encoded at once
const MOST_WORDS = 1 << 14; // whose ids are remembered
const LONGEST_KNOWN = 64; // UTF-16 units of a word that is remembered
const PLACES = 2 ** 20; // more than a word has bytes
const LONE_SURROGATE = /\p{Cs}/gu;

// Qwen2's regex. In JavaScript, \s is another set of characters than Unicode's white space, and not
// every browser knows (?i:...); the long s is a small "s" to a regex that ignores case.
// Source: https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py
const SPACE = "\\p{White_Space}";
const WORDS = new RegExp(
  [
    "'(?:[sS\\u017f]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])",
    "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+",
    "\\p{N}",
    ` ?[^${SPACE}\\p{L}\\p{N}]+[\\r\\n]*`,
    `${SPACE}*[\\r\\n]+`,
    `${SPACE}+(?!\\P{White_Space})`,
    `${SPACE}+`,
  ].join("|"),
  "gu",
);
// What goes on with the line before it, or may do so
const GOES_ON = /^[\p{White_Space}\p{N}\p{Cn}\u001c-\u001f/\u180e]/u;

export class Subwords {
  /** bytes: the byte of each id from 1 on; merges: two ids for each merge, as a text. */
  constructor({ bytes, merges }) {
    this.allowedRepeat = 2;
    this.bytes = [[], ...bytes.map((byte) => [byte])]; // of each token
    this.idOfByte = new Uint16Array(256);
    bytes.forEach((byte, i) => (this.idOfByte[byte] = i + 1));
    this.ranks = new Map(); // of pairs; see pairOf
    this.merged = []; // the id that the merge of each rank makes
    this.addMerges((merges.match(/\d+/g) ?? []).map(Number));
    this.lineFeeds = new Set();
    this.bytes.forEach((some, id) => some.includes(10) && this.lineFeeds.add(id));
    this.idsOfWord = new Map();
    this.toBytes = new TextEncoder();
    this.wholeCharacters = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  }

  get size() {
    return this.bytes.length;
  }

  addMerges(ids) {
    const known = new Map(this.bytes.map((some, id) => [some.join(), id]));
    for (let i = 0; i < ids.length; i += 2) {
      const some = [...this.bytes[ids[i]], ...this.bytes[ids[i + 1]]];
      const name = some.join();
      if (!known.has(name)) {
        known.set(name, this.bytes.length); // two merges may make one token
        this.bytes.push(some);
      }
      this.ranks.set(pairOf(ids[i], ids[i + 1]), this.merged.length);
      this.merged.push(known.get(name));
    }
  }

  /** Return whether all of a text can be written: half a surrogate pair is no text. */
  canWrite(text) {
    return text.search(LONE_SURROGATE) < 0;
  }

  /** Return the ids of a text; half a surrogate pair becomes a question mark. */
  encode(text) {
    const ids = [];
    splitDocuments(text.replace(LONE_SURROGATE, "?")).forEach((document, i) => {
      if (i > 0) ids.push(END_OF_TEXT_ID);
      for (const piece of this.piecesOf(document)) {
        for (const [word] of piece.matchAll(WORDS)) {
          for (const id of this.encodeWord(word)) ids.push(id);
        }
      }
    });
    return ids;
  }

  /** Yield the pieces of a document: as long as they may be, cut where a line begins. */
  *piecesOf(document) {
    let rest = document;
    while (rest.length > LONGEST_PIECE) {
      const window = beginning(rest, LONGEST_PIECE + 1);
      const longest = beginning(rest, LONGEST_PIECE);
      if (longest.length === rest.length) break;
      const length = this.lastCut(window) || longest.length;
      yield rest.slice(0, length);
      rest = rest.slice(length);
    }
    yield rest;
  }

  /** Return the last place where a text can be cut without a change of its ids; 0: nowhere. */
  lastCut(text) {
    for (let end = text.length - 2; end >= 0; end -= 1) {
      const lineFeed = text.lastIndexOf("\n", end);
      if (lineFeed < 0) return 0;
      if (!GOES_ON.test(text.slice(lineFeed + 1, lineFeed + 3))) return lineFeed + 1;
      end = lineFeed;
    }
    return 0;
  }

  encodeWord(word) {
    const known = this.idsOfWord.get(word);
    if (known) return known;
    const ids = this.merge(Array.from(this.toBytes.encode(word), (byte) => this.idOfByte[byte]));
    const isKept = word.length <= LONGEST_KNOWN && this.idsOfWord.size < MOST_WORDS;
    if (isKept) this.idsOfWord.set(word, ids);
    return ids;
  }

  /** Merge the ids of a word's bytes; of equal pairs, the left one first. */
  merge(ids) {
    const next = ids.map((_, place) => place + 1); // the place of what comes next
    const before = ids.map((_, place) => place - 1);
    const waiting = new Smallest();
    const rankAt = (place) => {
      if (place < 0 || next[place] >= ids.length) return undefined;
      return this.ranks.get(pairOf(ids[place], ids[next[place]]));
    };
    const wait = (place) => {
      const rank = rankAt(place);
      if (rank !== undefined) waiting.add(rank * PLACES + place);
    };
    for (let place = 0; place < ids.length; place += 1) wait(place);
    while (waiting.size) {
      const smallest = waiting.take();
      const place = smallest % PLACES;
      const rank = Math.floor(smallest / PLACES);
      // what has been merged since with something else is another pair, or gone
      if (ids[place] !== 0 && rankAt(place) === rank) {
        const gone = next[place];
        ids[place] = this.merged[rank];
        ids[gone] = 0;
        next[place] = next[gone];
        if (next[gone] < ids.length) before[next[gone]] = place;
        wait(place);
        wait(before[place]);
      }
    }
    return ids.filter((id) => id !== 0);
  }

  /** Return the text of a token, or null of one that has a part of a character. */
  textOf(id) {
    try {
      return this.wholeCharacters.decode(Uint8Array.from(this.bytes[id]));
    } catch {
      return null;
    }
  }

  /** Return what turns ids into text one by one; it holds a character back until it is whole. */
  decoder() {
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    return {
      feed: (id) => utf8.decode(Uint8Array.from(this.bytes[id]), { stream: true }),
      end: () => utf8.decode(),
    };
  }
}

// Both are below 2 ** 18, and a number has 53 bits
function pairOf(left, right) {
  return left * 2 ** 20 + right;
}

/** Return the first `count` characters of a text. */
function beginning(text, count) {
  let end = 0;
  for (let i = 0; i < count && end < text.length; i += 1) {
    end += text.codePointAt(end) > 0xffff ? 2 : 1;
  }
  return text.slice(0, end);
}

/** Numbers, of which the smallest can be taken: a binary heap. */
class Smallest {
  constructor() {
    this.heap = [];
  }

  get size() {
    return this.heap.length;
  }

  add(number) {
    const { heap } = this;
    let place = heap.length;
    while (place > 0) {
      const above = (place - 1) >> 1;
      if (heap[above] <= number) break;
      heap[place] = heap[above];
      place = above;
    }
    heap[place] = number;
  }

  take() {
    const { heap } = this;
    const smallest = heap[0];
    const last = heap.pop();
    if (!heap.length) return smallest;
    let place = 0;
    for (;;) {
      let below = 2 * place + 1;
      if (below >= heap.length) break;
      if (below + 1 < heap.length && heap[below + 1] < heap[below]) below += 1;
      if (heap[below] >= last) break;
      heap[place] = heap[below];
      place = below;
    }
    heap[place] = last;
    return smallest;
  }
}
