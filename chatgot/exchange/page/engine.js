// From a prompt to a text, token by token. Everything here is a generator: it yields often, so that
// whoever runs it can show what is new, listen to "stop", and let a page breathe.

import { Drawer, logProbabilities, ranked } from "./drawing.js";
import { Shown } from "./stops.js";
import { END_OF_TEXT_ID } from "./vocabulary.js";

const MOST_RANKED = 40; // names that are ranked, besides those who have spoken already

/**
 * Return the index of the first token that a model still sees of a text of `length` tokens. Each
 * time that a text outgrows the context, the older half is forgotten.
 */
export function windowStart(length, context) {
  if (length <= context) return 0;
  const hop = context - Math.floor(context / 2);
  return Math.ceil((length - context) / hop) * hop;
}

/** Return the first `most` of some ids that are `wanted`. */
function firstOf(ids, most, wanted) {
  const found = [];
  for (const id of ids) {
    if (found.length >= most) break;
    if (wanted(id)) found.push(id);
  }
  return found;
}

export class Engine {
  constructor(model, vocabulary) {
    this.model = model;
    this.vocabulary = vocabulary;
    this.kept = []; // the ids whose keys and values the model holds
  }

  /** Return the logits (V,) after ids[start], ...; only what is new is read. Yields null. */
  *logitsAfter(ids, start, end = ids.length) {
    let common = 0;
    const most = Math.min(this.kept.length, end - start - 1); // the last one is always read
    while (common < most && this.kept[common] === ids[start + common]) common += 1;
    this.kept.length = common;
    const logits = yield* this.model.read(ids, start + common, end, common);
    for (let i = start + common; i < end; i += 1) this.kept.push(ids[i]);
    return logits;
  }

  /** Return the logits after each of the ids, which fit into the context: an array of arrays. */
  *allLogits(ids) {
    const all = [];
    this.kept.length = 0;
    yield* this.model.read(ids, 0, ids.length, 0, (logits) => all.push(Array.from(logits)));
    return all;
  }

  /**
   * Write a text that follows a prompt. Yields null, or what is new: {text, tokens, finish}.
   * lines: the speakers' lines before which it ends, or null.
   * top: with each token come its log-probability and the `top` likeliest; null: without.
   */
  *write({ prompt, controls, lines = null, top = null }) {
    const { vocabulary } = this;
    const { context } = this.model;
    const ids = vocabulary.encode(prompt);
    if (!ids.length) ids.push(END_OF_TEXT_ID);
    const shown = new Shown(lines && new Set(lines));
    const decoder = vocabulary.decoder();
    const drawer = new Drawer(controls, ids, {
      breakers: vocabulary.lineFeeds,
      speakerLines: this.encodedLines(lines),
      allowedRepeat: vocabulary.allowedRepeat,
    });
    // half a character and half a speaker's line were held back
    const rest = () => shown.feed(decoder.end()) + shown.end();
    for (let count = 0; count < controls.max_tokens; count += 1) {
      const logits = yield* this.logitsAfter(ids, windowStart(ids.length, context));
      // a model may have more rows than tokens, which are never drawn
      const token = drawer.draw(logits.subarray(0, vocabulary.size));
      if (token === END_OF_TEXT_ID) {
        yield { text: rest(), tokens: [], finish: "stop" };
        return;
      }
      const tokens = top === null ? [] : [this.described(token, logits, top)];
      ids.push(token);
      const text = shown.feed(decoder.feed(token));
      yield { text, tokens, finish: shown.ended ? "stop" : "" };
      if (shown.ended) return;
    }
    yield { text: rest(), tokens: [], finish: "length" };
  }

  encodedLines(lines) {
    const whole = (lines ?? []).map((line) => `${line}\n`);
    const writable = whole.filter((line) => this.vocabulary.canWrite(line));
    return new Set(writable.map((line) => this.vocabulary.encode(line).join()));
  }

  // A part of a character has no text; nobody could choose it instead of another token
  described(token, logits, top) {
    const logprobs = logProbabilities(logits);
    const ofTokens = logprobs.subarray(0, this.vocabulary.size);
    const about = (id) => ({ text: this.vocabulary.textOf(id) ?? "", logprob: logprobs[id] });
    const isWhole = (id) => this.vocabulary.textOf(id) !== null;
    const likeliest = firstOf(ranked(ofTokens), top, isWhole);
    return { ...about(token), top: likeliest.map(about) };
  }

  /** Return who of these names speaks next most likely; "" where none can be ranked. */
  *chooseSpeaker(prompt, names, spoken) {
    const { context } = this.model;
    // The prompt ends in a line feed, and neither a subword nor a speaker's name reaches over it
    const candidates = [...new Set(names)]
      .filter((name, place) => place < MOST_RANKED || spoken.has(name))
      .map((name) => ({ name, ids: this.vocabulary.encode(`${name}:\n`) }))
      .filter(({ ids }) => ids.length <= Math.floor(context / 2));
    if (!candidates.length) return "";
    const longest = Math.max(...candidates.map(({ ids }) => ids.length));
    let ids = this.vocabulary.encode(prompt);
    if (!ids.length) ids = [END_OF_TEXT_ID];
    ids = ids.slice(windowStart(ids.length + longest, context));
    const first = logProbabilities(yield* this.logitsAfter(ids, 0));
    let best = null;
    for (const candidate of candidates) {
      const score = yield* this.scoreOf(candidate.ids, ids.length, first);
      if (best === null || score > best.score) best = { name: candidate.name, score };
      yield null;
    }
    return best.name;
  }

  // What is read here comes after what is kept, so that it is overwritten later
  *scoreOf(line, past, first) {
    let score = first[line[0]];
    let place = 1;
    const count = (logits) => {
      score += logProbabilities(logits)[line[place]];
      place += 1;
    };
    yield* this.model.read(line, 0, line.length - 1, past, count);
    return score;
  }
}
