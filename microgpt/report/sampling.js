// Drawing tokens: what microgpt/sampling.py and microgpt/random/splitmix.py do, in JavaScript. The same seed draws the
// same tokens as `GPT.generate`, unless the last bits of a probability matter.

import { gpt, softmax } from "./gpt.js";

const LOWEST_TEMPERATURE = 1e-30; // below, sampling is greedy

/** The number of tokens that the model sees after `length` of them: when the context is full, half of it is kept. */
export function contextLength(length, blockSize) {
  if (length <= blockSize) return length;
  const half = Math.max(1, Math.floor(blockSize / 2));
  return half + ((length - blockSize - 1) % (blockSize - half + 1));
}

/** The number of tokens, at least 1, that can be drawn after `length` tokens before the context restarts. */
export const room = (length, blockSize) => blockSize + 1 - contextLength(length, blockSize);

/** What the model computes for a growing text: for each token, {logits, attention, begin}, of the tokens from `begin`. */
export class Reader {
  #keys;
  #values;
  #begin = 0; // the first token in #keys and #values

  constructor({ stateDict, config }) {
    this.stateDict = stateDict;
    this.config = config;
    this.tokens = [];
    this.outputs = [];
    this.#forget();
  }

  #forget() {
    this.#keys = Array.from({ length: this.config.n_layer }, () => []);
    this.#values = Array.from({ length: this.config.n_layer }, () => []);
  }

  /** Read these tokens instead of those before. What both begin with is not computed again. */
  read(tokens) {
    let same = 0;
    while (same < Math.min(this.tokens.length, tokens.length) && this.tokens[same] === tokens[same]) same++;
    this.tokens.length = this.outputs.length = same;
    for (const token of tokens.slice(same)) this.append(token);
  }

  /** Read one token more. */
  append(token) {
    this.tokens.push(token);
    const { length } = this.tokens;
    const begin = length - contextLength(length, this.config.block_size);
    if (begin !== this.#begin) this.#forget();
    this.#begin = begin;
    for (const cache of [...this.#keys, ...this.#values]) cache.length = Math.min(cache.length, length - 1 - begin);
    let output;
    for (let i = begin + this.#keys[0].length; i < length; i++)
      output = gpt(this.tokens[i], i - begin, this.#keys, this.#values, this.stateDict, this.config);
    this.outputs.push({ ...output, begin });
  }
}

/**
 * The probability of each token to be drawn: the softmax of logits / temperature, of the `topK` likeliest tokens only.
 * Among equal ones, a smaller id counts as likelier. At temperature 0, the likeliest is certain.
 */
export function nextProbabilities(logits, temperature, topK = Infinity) {
  if (temperature < LOWEST_TEMPERATURE || topK === 1) {
    const [likeliest] = likeliestOf(logits, 1);
    return logits.map((_, token) => Number(token === likeliest));
  }
  const probabilities = softmax(logits.map((logit) => logit / temperature));
  if (topK >= probabilities.length) return probabilities;
  const kept = new Set(likeliestOf(probabilities, topK));
  const total = [...kept].reduce((sum, token) => sum + probabilities[token], 0);
  return probabilities.map((probability, token) => (kept.has(token) ? probability / total : 0));
}

/** The `n` tokens with the largest numbers, largest first. */
export function likeliestOf(numbers, n) {
  const least = Float64Array.from(numbers).sort()[Math.max(0, numbers.length - n)];
  return Array.from(numbers.keys())
    .filter((token) => numbers[token] >= least)
    .sort((a, b) => numbers[b] - numbers[a] || a - b)
    .slice(0, n);
}

/** The token that is drawn with these probabilities if the random number in [0, 1) is `uniform`. */
export function drawToken(probabilities, uniform) {
  const point = uniform * probabilities.reduce((a, b) => a + b);
  let sum = 0;
  const token = probabilities.findIndex((probability) => (sum += probability) > point);
  return token >= 0 ? token : probabilities.length - 1;
}

const WORD = (1n << 64n) - 1n;

/** Random number `number` of the stream that `seed` gives: in [0, 1), with 53 bits. */
export function uniformOf(seed, number) {
  const stream = mixed(mixed(BigInt(seed)));
  return Number(mixed(stream + (BigInt(number) + 1n) * 0x9e3779b97f4a7c15n) >> 11n) * 2 ** -53;
}

function mixed(word) {
  word &= WORD;
  word = ((word ^ (word >> 30n)) * 0xbf58476d1ce4e5b9n) & WORD;
  word = ((word ^ (word >> 27n)) * 0x94d049bb133111ebn) & WORD;
  return word ^ (word >> 31n);
}
