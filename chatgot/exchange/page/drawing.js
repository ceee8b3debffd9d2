// From logits to a token: DRY, temperature, top_k, top_p, min_p, and the draw.

const WINDOW = 1024; // tokens: DRY looks no further back
const MOST_PENALTY = 1e30; // base ** length grows beyond any number
const DRY_BASE = 1.75;

/** Draws the tokens of one text; the same controls, prompt and logits give the same tokens. */
export class Drawer {
  /**
   * controls: temperature, top_k, top_p, min_p, dry_multiplier, seed.
   * breakers: the ids with a line feed; they end a repeat and are never penalized.
   * speakerLines: the ids of each speaker's line, the breaker at its end, joined by commas: they
   * may repeat.
   * allowedRepeat: tokens that may repeat without a penalty.
   */
  constructor(controls, prompt, { breakers, speakerLines, allowedRepeat }) {
    this.controls = controls;
    this.drawn = 0;
    this.allowedRepeat = allowedRepeat;
    this.repeats = null;
    if (controls.dry_multiplier > 0) {
      this.repeats = new Repeats(prompt, breakers, speakerLines);
    }
  }

  /** Return the next token, drawn from logits (V,). */
  draw(logits) {
    const scores = Float64Array.from(logits);
    this.repeats?.penalize(scores, this.controls.dry_multiplier, this.allowedRepeat);
    makeFinite(scores);
    const token = this.controls.temperature > 0 ? this.pick(scores) : likeliest(scores);
    this.repeats?.append(token);
    this.drawn += 1;
    return token;
  }

  pick(scores) {
    const { temperature, seed } = this.controls;
    const best = scores[likeliest(scores)];
    const ratios = scores.map((score) => (score - best) / temperature);
    const weights = ratios.map((ratio) => Math.exp(ratio));
    keepLikeliest(ratios, weights, this.controls);
    keepMinP(ratios, weights, this.controls.min_p);
    let total = 0;
    for (const weight of weights) total += weight;
    const target = noise(seed, this.drawn) * total;
    let sum = 0;
    let last = 0; // rounding may leave the target just above the sum of all
    for (let token = 0; token < weights.length; token += 1) {
      if (weights[token] > 0) {
        sum += weights[token];
        last = token;
        if (sum > target) return token;
      }
    }
    return last;
  }
}

/** Return log-probabilities (V,) in nats of logits (V,), before any control. */
export function logProbabilities(logits) {
  const scores = Float64Array.from(logits);
  makeFinite(scores);
  const best = scores[likeliest(scores)];
  let sum = 0;
  for (const score of scores) sum += Math.exp(score - best);
  const whole = best + Math.log(sum);
  return scores.map((score) => score - whole);
}

/** Return the ids of scores (V,), the highest first; of equal ones, the lower id first. */
export function ranked(scores) {
  const ids = Array.from(scores, (_, id) => id);
  return ids.sort((a, b) => scores[b] - scores[a] || a - b);
}

function likeliest(scores) {
  let best = 0;
  for (let id = 1; id < scores.length; id += 1) if (scores[id] > scores[best]) best = id;
  return best;
}

function makeFinite(scores) {
  let isFinite = false;
  for (let id = 0; id < scores.length; id += 1) {
    if (Number.isNaN(scores[id])) scores[id] = -Infinity;
    if (scores[id] === Infinity) scores[id] = MOST_PENALTY;
    isFinite ||= scores[id] > -Infinity;
  }
  if (!isFinite) scores.fill(0);
}

/** Apply top_k, then top_p: the weight of what is not kept becomes 0. */
function keepLikeliest(ratios, weights, { top_k: topK, top_p: topP }) {
  const hasTopK = topK > 0 && topK < ratios.length;
  const hasTopP = topP !== undefined && topP !== null && topP < 1;
  if (!hasTopK && !hasTopP) return;
  const order = ranked(ratios);
  let count = hasTopK ? topK : ratios.length;
  if (hasTopP) {
    let total = 0;
    for (let i = 0; i < count; i += 1) total += weights[order[i]];
    let sum = 0;
    let needed = 0; // as many as reach top_p
    while (needed < count && (needed === 0 || sum < topP * total)) {
      sum += weights[order[needed]];
      needed += 1;
    }
    count = needed;
  }
  for (let i = count; i < order.length; i += 1) weights[order[i]] = 0;
}

function keepMinP(ratios, weights, minP) {
  if (!(minP > 0)) return;
  const least = Math.log(Math.min(minP, 1));
  for (let id = 0; id < ratios.length; id += 1) if (ratios[id] < least) weights[id] = 0;
}

/** Return a number in [0, 1) that depends on the seed and the index of the token alone. */
function noise(seed, index) {
  const high = mixed(mixed(seed >>> 0) ^ mixed(index + 0x9e3779b9) ^ mixed(seed / 2 ** 32));
  const low = mixed(high ^ 0x85ebca6b);
  return (high * 2 ** 21 + (low >>> 11)) / 2 ** 53;
}

// Source: the finalizer of MurmurHash3, by Austin Appleby
function mixed(number) {
  let bits = number >>> 0;
  bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
  return (bits ^ (bits >>> 16)) >>> 0;
}

/**
 * DRY: for each distance, how many tokens at the end of the text are the same as those so many
 * tokens earlier. The token that came next there would make this repeat longer: it is penalized.
 * Source: https://github.com/oobabooga/textgen/pull/5677 (the idea and the formula)
 */
class Repeats {
  constructor(prompt, breakers, speakerLines) {
    this.breakers = breakers;
    this.speakerLines = speakerLines;
    this.tokens = []; // the newest one last
    this.mayRepeat = [];
    this.line = []; // the ids since the last breaker
    this.lengths = new Int32Array(WINDOW - 1); // of distance 1, 2, ...
    const recent = prompt.slice(-WINDOW);
    const lineStart = recent.findLastIndex((token) => breakers.has(token)) + 1;
    recent.slice(0, lineStart).forEach((token) => this.put(token));
    recent.slice(lineStart).forEach((token) => this.append(token));
  }

  append(token) {
    const { tokens, lengths } = this;
    for (let i = 0; i < lengths.length; i += 1) {
      lengths[i] = tokens[tokens.length - 1 - i] === token ? lengths[i] + 1 : 0;
    }
    this.put(token);
    if (this.breakers.has(token)) lengths.fill(0);
  }

  put(token) {
    const isBreaker = this.breakers.has(token);
    this.tokens.push(token);
    this.mayRepeat.push(isBreaker);
    this.line.push(token);
    if (!isBreaker) return;
    if (this.speakerLines.has(this.line.join())) {
      this.mayRepeat.fill(true, this.mayRepeat.length - this.line.length);
    }
    this.line = [];
  }

  /** Lower in the scores (V,), in place, what would make a repeat longer. */
  penalize(scores, multiplier, allowedRepeat) {
    const longest = new Map(); // of several repeats that one token would prolong, this counts
    for (let i = 0; i < this.lengths.length; i += 1) {
      const at = this.tokens.length - 1 - i;
      const length = Math.min(this.lengths[i], WINDOW - 1 - i); // both copies are in the window
      if (at >= 0 && length >= allowedRepeat && !this.mayRepeat[at]) {
        const token = this.tokens[at];
        longest.set(token, Math.max(length, longest.get(token) ?? 0));
      }
    }
    for (const [token, length] of longest) {
      const penalty = multiplier * DRY_BASE ** (length - allowedRepeat);
      scores[token] -= Math.min(penalty, MOST_PENALTY);
    }
  }
}
