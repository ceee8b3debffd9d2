// The forward pass of both architectures, with the keys and values of earlier tokens kept.
//
// Letters: T tokens, C width, H query heads, G heads of keys and values, D head size, F width of
// the hidden layer, V vocabulary. A matrix (rows, width) lies row by row in one Float32Array.

const CHUNK = 32; // tokens that go through the layers at once

/** A model that reads tokens into the positions of its context. */
export class Model {
  /** `shape`: the keys of `model` in a configuration; `tensors`: by their names. */
  constructor(shape, tensors) {
    const take = (name) => tensors[name] ?? null;
    this.isModern = shape.architecture === "modern";
    this.width = shape.d_model;
    this.heads = shape.n_head;
    this.kvHeads = shape.n_kv_head ?? shape.n_head;
    this.headSize = shape.head_dim ?? shape.d_model / shape.n_head;
    this.context = shape.max_seq_length;
    this.eps = shape.layer_norm_eps;
    this.gelu = shape.activation === "gelu_tanh" ? geluTanh : geluExact;
    this.embedding = take("token_embedding.weight");
    this.positions = take("position_embedding.weight");
    this.head = shape.tie_embeddings ? this.embedding : take("head.weight");
    this.norm = normOf(take, "norm");
    this.vocabSize = this.head.length / this.width;
    this.layers = Array.from({ length: shape.n_layers }, (_, i) => layerOf(take, `layers.${i}.`));
    this.hiddenSize = this.layers[0].down.weight.length / this.width;
    this.makeBuffers();
    if (this.isModern) this.makeRotations(shape.rope_base);
  }

  makeBuffers() {
    const buffer = (size) => new Float32Array(CHUNK * size);
    const kvSize = this.kvHeads * this.headSize;
    this.stream = buffer(this.width); // (T, C)
    this.normal = buffer(this.width);
    this.added = buffer(this.width);
    this.qkv = buffer(this.heads * this.headSize + 2 * kvSize);
    this.attended = buffer(this.heads * this.headSize);
    this.hidden = buffer((this.isModern ? 2 : 1) * this.hiddenSize);
    this.scores = new Float64Array(this.context);
    this.logits = new Float32Array(this.vocabSize);
    for (const layer of this.layers) {
      layer.keys = new Float32Array(this.context * kvSize); // (G, context, D)
      layer.values = new Float32Array(this.context * kvSize);
    }
  }

  // Source: arXiv:2104.09864, section 3.2.2
  makeRotations(base) {
    const half = this.headSize / 2;
    this.cosines = new Float32Array(this.context * half);
    this.sines = new Float32Array(this.context * half);
    for (let position = 0; position < this.context; position += 1) {
      for (let i = 0; i < half; i += 1) {
        const angle = position / base ** (i / half);
        this.cosines[position * half + i] = Math.cos(angle);
        this.sines[position * half + i] = Math.sin(angle);
      }
    }
  }

  /**
   * Read ids[from], ... ids[to - 1] into the positions from `past` on; yield after each chunk.
   * Returns the logits after the last one, (V,): a buffer that the next call overwrites.
   * onLogits, if it is there, gets those after each token.
   */
  *read(ids, from, to, past, onLogits = null) {
    for (let begin = from; begin < to; begin += CHUNK) {
      if (begin > from) yield null;
      const count = Math.min(CHUNK, to - begin);
      this.readChunk(ids, begin, count, past + begin - from);
      for (let t = onLogits ? 0 : count; t < count; t += 1) onLogits(this.logitsAfter(t));
      if (begin + count === to) this.logitsAfter(count - 1);
    }
    return this.logits;
  }

  logitsAfter(t) {
    const { width } = this;
    const hidden = this.normal.subarray(t * width, (t + 1) * width);
    multiply(hidden, 1, { weight: this.head, bias: null }, this.logits, width, this.vocabSize);
    return this.logits;
  }

  readChunk(ids, begin, count, past) {
    this.embed(ids, begin, count, past);
    for (const layer of this.layers) {
      this.attention(layer, count, past);
      this.mlp(layer, count);
    }
    this.normalise(this.norm, count);
  }

  embed(ids, begin, count, past) {
    const { width, stream, embedding, positions } = this;
    for (let t = 0; t < count; t += 1) {
      const token = ids[begin + t] * width;
      const position = (past + t) * width;
      for (let i = 0; i < width; i += 1) {
        stream[t * width + i] = embedding[token + i] + (positions ? positions[position + i] : 0);
      }
    }
  }

  normalise(norm, count) {
    const { width, stream, normal, eps } = this;
    const apply = this.isModern ? rmsNorm : layerNorm;
    for (let t = 0; t < count; t += 1) apply(stream, normal, t * width, width, norm, eps);
  }

  attention(layer, count, past) {
    const { heads, kvHeads, headSize, width } = this;
    const total = (heads + 2 * kvHeads) * headSize;
    this.normalise(layer.normAttention, count);
    multiply(this.normal, count, layer.qkv, this.qkv, width, total);
    for (let t = 0; t < count; t += 1) {
      if (this.isModern) this.turn(layer, t * total, past + t);
      this.store(layer, t * total + heads * headSize, past + t);
    }
    for (let t = 0; t < count; t += 1) {
      for (let head = 0; head < heads; head += 1) this.attend(layer, t, head, past + t);
    }
    multiply(this.attended, count, layer.proj, this.added, heads * headSize, width);
    add(this.stream, this.added, count * width);
  }

  /** Normalise and rotate the queries and keys of one token. */
  turn(layer, at, position) {
    const { qkv, heads, kvHeads, headSize } = this;
    for (let head = 0; head < heads + kvHeads; head += 1) {
      const start = at + head * headSize;
      const norm = head < heads ? layer.qNorm : layer.kNorm;
      if (norm) rmsNorm(qkv, qkv, start, headSize, norm, this.eps);
      this.rotate(start, position);
    }
  }

  // element i turns with element i + D / 2
  rotate(start, position) {
    const { qkv, cosines, sines } = this;
    const half = this.headSize / 2;
    for (let i = 0; i < half; i += 1) {
      const cosine = cosines[position * half + i];
      const sine = sines[position * half + i];
      const lower = qkv[start + i];
      const upper = qkv[start + half + i];
      qkv[start + i] = lower * cosine - upper * sine;
      qkv[start + half + i] = upper * cosine + lower * sine;
    }
  }

  store({ keys, values }, start, position) {
    const { qkv, kvHeads, headSize, context } = this;
    for (let head = 0; head < kvHeads; head += 1) {
      const from = start + head * headSize;
      const to = (head * context + position) * headSize;
      for (let i = 0; i < headSize; i += 1) {
        keys[to + i] = qkv[from + i];
        values[to + i] = qkv[from + kvHeads * headSize + i];
      }
    }
  }

  /** Let one head of one token look at all positions up to its own. */
  attend({ keys, values }, t, head, last) {
    const { qkv, attended, scores, heads, kvHeads, headSize } = this;
    const query = t * (heads + 2 * kvHeads) * headSize + head * headSize;
    const shared = Math.floor((head * kvHeads) / heads);
    const first = shared * this.context * headSize;
    const scale = 1 / Math.sqrt(headSize);
    let best = -Infinity;
    for (let p = 0; p <= last; p += 1) {
      const key = first + p * headSize;
      let score = 0;
      for (let i = 0; i < headSize; i += 1) score += qkv[query + i] * keys[key + i];
      scores[p] = score * scale;
      if (scores[p] > best) best = scores[p];
    }
    let sum = 0;
    for (let p = 0; p <= last; p += 1) {
      scores[p] = Math.exp(scores[p] - best);
      sum += scores[p];
    }
    const out = (t * heads + head) * headSize;
    for (let i = 0; i < headSize; i += 1) attended[out + i] = 0;
    for (let p = 0; p <= last; p += 1) {
      const share = scores[p] / sum;
      const value = first + p * headSize;
      for (let i = 0; i < headSize; i += 1) attended[out + i] += share * values[value + i];
    }
  }

  mlp(layer, count) {
    const { hidden, width, hiddenSize } = this;
    this.normalise(layer.normMlp, count);
    const size = this.isModern ? 2 * hiddenSize : hiddenSize;
    multiply(this.normal, count, layer.up, hidden, width, size);
    if (this.isModern) {
      gate(hidden, count, hiddenSize);
    } else {
      for (let i = 0; i < count * hiddenSize; i += 1) hidden[i] = this.gelu(hidden[i]);
    }
    multiply(hidden, count, layer.down, this.added, hiddenSize, width);
    add(this.stream, this.added, count * width);
  }
}

function linearOf(take, name) {
  return { weight: take(`${name}.weight`), bias: take(`${name}.bias`) };
}

function normOf(take, name) {
  return take(`${name}.weight`) && linearOf(take, name);
}

function layerOf(take, prefix) {
  const isGated = take(`${prefix}mlp.gate_up.weight`) !== null;
  return {
    normAttention: normOf(take, `${prefix}norm_attention`),
    qkv: linearOf(take, `${prefix}attention.qkv`),
    qNorm: normOf(take, `${prefix}attention.q_norm`),
    kNorm: normOf(take, `${prefix}attention.k_norm`),
    proj: linearOf(take, `${prefix}attention.proj`),
    normMlp: normOf(take, `${prefix}norm_mlp`),
    up: linearOf(take, `${prefix}mlp.${isGated ? "gate_up" : "up"}`),
    down: linearOf(take, `${prefix}mlp.down`),
  };
}

function add(stream, added, size) {
  for (let i = 0; i < size; i += 1) stream[i] += added[i];
}

// Source: arXiv:1910.07467
function rmsNorm(x, y, start, size, { weight }, eps) {
  let squares = 0;
  for (let i = start; i < start + size; i += 1) squares += x[i] * x[i];
  const scale = 1 / Math.sqrt(squares / size + eps);
  for (let i = 0; i < size; i += 1) y[start + i] = x[start + i] * scale * weight[i];
}

// Source: arXiv:1607.06450
function layerNorm(x, y, start, size, { weight, bias }, eps) {
  let sum = 0;
  for (let i = start; i < start + size; i += 1) sum += x[i];
  const mean = sum / size;
  let squares = 0;
  for (let i = start; i < start + size; i += 1) squares += (x[i] - mean) * (x[i] - mean);
  const scale = 1 / Math.sqrt(squares / size + eps);
  for (let i = 0; i < size; i += 1) {
    y[start + i] = (x[start + i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
  }
}

// SwiGLU: the first half of what a token has is the gate. Source: arXiv:2002.05202
function gate(hidden, count, size) {
  for (let t = 0; t < count; t += 1) {
    for (let i = 0; i < size; i += 1) {
      const x = hidden[t * 2 * size + i];
      hidden[t * size + i] = (x / (1 + Math.exp(-x))) * hidden[(t * 2 + 1) * size + i];
    }
  }
}

// Source: arXiv:1606.08415, section 2, exact
function geluExact(x) {
  return 0.5 * x * (1 + errorFunction(x * Math.SQRT1_2));
}

// The same section's approximation, which OpenAI's GPT-2 uses
function geluTanh(x) {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)));
}

/** Return erf(x), exact to double precision: a series in which no term cancels another. */
export function errorFunction(x) {
  if (Math.abs(x) > 6) return Math.sign(x); // the difference is below 2e-17
  // Source: Abramowitz and Stegun 1964, 7.1.6
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n += 1) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

/** Write y (T, m) = x (T, n) times a matrix (m, n), plus its bias. */
function multiply(x, count, { weight, bias }, y, n, m) {
  let t = 0;
  for (; t + 4 <= count; t += 4) fourTokens(x, t * n, weight, y, t * m, n, m);
  for (; t < count; t += 1) oneToken(x, t * n, weight, y, t * m, n, m);
  if (!bias) return;
  for (t = 0; t < count; t += 1) {
    for (let i = 0; i < m; i += 1) y[t * m + i] += bias[i];
  }
}

// Four sums at once, since each has to wait for its last addition; four rows share each x
function oneToken(x, from, w, y, to, n, m) {
  let row = 0;
  for (; row + 4 <= m; row += 4) {
    const r0 = row * n;
    const r1 = r0 + n;
    const r2 = r1 + n;
    const r3 = r2 + n;
    let a = 0;
    let b = 0;
    let c = 0;
    let d = 0;
    for (let i = 0; i < n; i += 1) {
      const value = x[from + i];
      a += value * w[r0 + i];
      b += value * w[r1 + i];
      c += value * w[r2 + i];
      d += value * w[r3 + i];
    }
    y[to + row] = a;
    y[to + row + 1] = b;
    y[to + row + 2] = c;
    y[to + row + 3] = d;
  }
  for (; row < m; row += 1) {
    let a = 0;
    for (let i = 0; i < n; i += 1) a += x[from + i] * w[row * n + i];
    y[to + row] = a;
  }
}

// Four tokens share each weight, which is read from memory once
function fourTokens(x, from, w, y, to, n, m) {
  const t1 = from + n;
  const t2 = t1 + n;
  const t3 = t2 + n;
  for (let row = 0; row < m; row += 1) {
    const start = row * n;
    let a = 0;
    let b = 0;
    let c = 0;
    let d = 0;
    for (let i = 0; i < n; i += 1) {
      const value = w[start + i];
      a += x[from + i] * value;
      b += x[t1 + i] * value;
      c += x[t2 + i] * value;
      d += x[t3 + i] * value;
    }
    y[to + row] = a;
    y[to + row + m] = b;
    y[to + row + 2 * m] = c;
    y[to + row + 3 * m] = d;
  }
}
