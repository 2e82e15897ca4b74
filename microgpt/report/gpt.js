// The model: from tokens and parameters to logits of the next token. It is `gpt` of microgpt/reference.py in JavaScript,
// function by function, without gradients: parameters are float32, activations and sums are doubles.

/** The parameters by name, each {rows, columns, data}: float32 numbers, little-endian, end to end, in base64. */
export function readStateDict(base64, shapes) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const numbers = new DataView(bytes.buffer);
  let start = 0;
  const matrices = Object.entries(shapes).map(([name, [rows, columns]]) => {
    const data = Float32Array.from({ length: rows * columns }, (_, i) => numbers.getFloat32(4 * (start + i), true));
    start += data.length;
    return [name, { rows, columns, data }];
  });
  return Object.fromEntries(matrices);
}

const add = (a, b) => a.map((ai, i) => ai + b[i]);
const row = (w, i) => Float64Array.from(w.data.subarray(i * w.columns, (i + 1) * w.columns));

/** The sum of the products of `n` numbers of `a`, from index `i`, and of `b`, from index `j`. */
function dot(a, i, b, j, n) {
  let sum = 0;
  for (let k = 0; k < n; k++) sum += a[i + k] * b[j + k];
  return sum;
}

/** The matrix-vector product `w x`. */
export function linear(x, w) {
  return new Float64Array(w.rows).map((_, i) => dot(w.data, i * w.columns, x, 0, w.columns));
}

/** Probabilities proportional to the exponentials of `logits`. */
export function softmax(logits) {
  const max = logits.reduce((a, b) => Math.max(a, b));
  const exps = logits.map((logit) => Math.exp(logit - max));
  const total = exps.reduce((a, b) => a + b);
  return exps.map((e) => e / total);
}

/** `x` divided by its root mean square. */
export function rmsnorm(x) {
  const scale = (dot(x, 0, x, 0, x.length) / x.length + 1e-5) ** -0.5;
  return x.map((xi) => xi * scale);
}

/** The error function: a series whose terms have one sign (Abramowitz and Stegun, 7.1.6). */
export function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x); // the difference is below 1e-16
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

export const ACTIVATIONS = {
  relu: (x) => Math.max(0, x),
  gelu: (x) => (x * (1 + erf(Math.SQRT1_2 * x))) / 2,
  silu: (x) => x / (1 + Math.exp(-x)),
};

/**
 * The logits of the token that follows `tokenId` at position `posId`, and the attention of each head to each position so
 * far, [layer][head][position].
 *
 * `keys` and `values` hold those of earlier positions, [layer][position]; this position's are appended.
 */
export function gpt(tokenId, posId, keys, values, stateDict, config) {
  const attention = [];
  const tokEmb = row(stateDict.wte, tokenId);
  const posEmb = row(stateDict.wpe, posId);
  let x = add(tokEmb, posEmb);
  x = rmsnorm(x);
  const headDim = config.n_embd / config.n_head;

  for (let layer = 0; layer < config.n_layer; layer++) {
    // 1) Multi-head attention
    let xResidual = x;
    x = rmsnorm(x);
    const q = linear(x, stateDict[`layer${layer}.attn_wq`]);
    const k = linear(x, stateDict[`layer${layer}.attn_wk`]);
    const v = linear(x, stateDict[`layer${layer}.attn_wv`]);
    keys[layer].push(k);
    values[layer].push(v);
    const xAttn = new Float64Array(config.n_embd);
    const heads = [];
    for (let start = 0; start < config.n_embd; start += headDim) {
      const attnLogits = keys[layer].map((kT) => dot(q, start, kT, start, headDim) / Math.sqrt(headDim));
      const attnWeights = softmax(attnLogits);
      values[layer].forEach((vT, t) => {
        for (let j = start; j < start + headDim; j++) xAttn[j] += attnWeights[t] * vT[j];
      });
      heads.push(attnWeights);
    }
    attention.push(heads);
    x = linear(xAttn, stateDict[`layer${layer}.attn_wo`]);
    x = add(x, xResidual);
    // 2) Multi-layer perceptron
    xResidual = x;
    x = rmsnorm(x);
    x = linear(x, stateDict[`layer${layer}.mlp_fc1`]);
    x = x.map(ACTIVATIONS[config.activation]);
    x = linear(x, stateDict[`layer${layer}.mlp_fc2`]);
    x = add(x, xResidual);
  }

  return { logits: linear(x, stateDict.lm_head), attention };
}
