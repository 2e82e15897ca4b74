// The part of the page that plays: a model whose parameters are in the page, asked for the letters of a document.

import { Letters } from "../display/letters.js";
import { readStateDict } from "./gpt.js";
import { Reader, drawToken, likeliestOf, nextProbabilities, room, uniformOf } from "./sampling.js";
import { UnknownCharacter, makeTokenizer } from "./tokenizer.js";

const CANDIDATES = 10;
const TEXT_TOKENS = 200; // drawn of a continuous text before it pauses

const byId = (id) => document.getElementById(`play-${id}`);
const model = JSON.parse(byId("model").textContent);
const { config, labels, bos, reads_bos: readsBos } = model;
const isText = model.format === "text";
const tokenizer = makeTokenizer(model.tokenizer);
const reader = new Reader({ stateDict: readStateDict(model.parameters, model.shapes), config });
const letters = new Letters(byId("letters"), { extend, choose });

let given = []; // the tokens of the beginning
let drawn = []; // those after it; the last may be BOS, which ends a document
let limit = 0; // number of tokens until drawing pauses

const isOver = () => !isText && drawn.at(-1) === bos;

/** What the form says. A field that is empty, or does not hold a number, has its default. */
function settings() {
  const number = (id, otherwise) => (byId(id).validity.valid && byId(id).value ? Number(byId(id).value) : otherwise);
  return { temperature: number("temperature", 1), topK: number("top-k", Infinity), seed: number("seed", 1) };
}

/** What came after token `i` and what could have come, as `Letters` shows it; computed when it is looked at. */
class Step {
  #i;
  #settings;
  #probabilities;

  constructor(i, token, settings) {
    this.#i = i;
    this.#settings = settings;
    this.token = token;
    this.label = labels[token];
  }

  get probabilities() {
    const { temperature, topK } = this.#settings;
    return (this.#probabilities ??= nextProbabilities(reader.outputs[this.#i].logits, temperature, topK));
  }

  get probability() {
    return this.probabilities[this.token];
  }

  get candidates() {
    const isPossible = (token) => this.probabilities[token] > 0;
    const likeliest = likeliestOf(this.probabilities, CANDIDATES).filter(isPossible);
    return likeliest.map((token) => [labels[token], this.probabilities[token], token]);
  }

  get attention() {
    return reader.outputs[this.#i].attention;
  }

  get begin() {
    return reader.outputs[this.#i].begin;
  }
}

/** Compute what the model expects after each token, and show the text. */
function drawing() {
  const tokens = [...(readsBos ? [bos] : []), ...given, ...drawn];
  const read = isOver() ? tokens.slice(0, -1) : tokens.length ? tokens : [bos]; // without a token, BOS stands for it
  reader.read(read);
  const current = settings();
  showText();
  return {
    labels: read.map((token) => labels[token]),
    first: Number(readsBos) + given.length,
    steps: read.map((_, i) => new Step(i, tokens.length ? tokens[i + 1] : undefined, current)),
  };
}

function showText() {
  byId("draw").textContent = drawn.length ? "Draw another" : "Draw";
  if (!tokenizer) return;
  const [beginning, whole] = [given, [...given, ...drawn]].map((tokens) => tokenizer.decode(tokens));
  byId("given").textContent = beginning;
  byId("drawn").textContent = whole.slice(beginning.length);
  byId("written").scrollTop = byId("written").scrollHeight;
}

/** Let the field hold the beginning that is drawn after, whatever was typed there and refused. */
function showBeginning() {
  byId("refusal").textContent = "";
  if (tokenizer) byId("beginning").value = tokenizer.decode(given);
}

/** Draw one more token, unless the document is over, or has as many as it can have before it pauses. */
function extend(isFirst) {
  const length = Math.max(1, Number(readsBos) + given.length + drawn.length);
  if (isFirst) {
    showBeginning();
    limit = isText ? TEXT_TOKENS : room(length, config.block_size);
  }
  if (isOver() || limit-- === 0) return undefined;
  const { temperature, topK, seed } = settings();
  const { logits } = reader.outputs.at(-1);
  drawn.push(drawToken(nextProbabilities(logits, temperature, topK), uniformOf(seed, drawn.length)));
  return drawing();
}

/** Put a token in the place of letter `i`, and leave out those after it. */
function choose(token, i) {
  const kept = i - Number(readsBos);
  given = given.slice(0, kept);
  showBeginning();
  drawn = [...drawn.slice(0, kept - given.length), token];
  const chosen = drawing();
  letters.show(chosen, false, chosen.steps.length);
}

/** Begin again with what is in the field, and draw the document with the chosen seed if `draws`. */
function begin(draws) {
  byId("refusal").textContent = "";
  try {
    given = tokenizer ? tokenizer.encode(byId("beginning").value) : [];
  } catch (error) {
    if (!(error instanceof UnknownCharacter)) throw error;
    byId("refusal").textContent = error.message;
    return;
  }
  drawn = [];
  const begun = drawing();
  letters.show(begun, draws, begun.steps.length);
}

/** Show the same letters with other settings. */
function reconsider() {
  const { temperature } = settings();
  byId("temperature-value").textContent = temperature.toFixed(1);
  letters.show(drawing(), false, letters.selected);
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (drawn.length) byId("seed").value = settings().seed + 1;
  begin(true);
});
for (const id of ["beginning", "seed"]) byId(id)?.addEventListener("input", () => begin(false));
for (const id of ["temperature", "top-k"]) byId(id).addEventListener("input", reconsider);

byId("form").hidden = byId("letters").hidden = false;
begin(false);
letters.finish().then((ended) => ended && letters.show(letters.drawing, false)); // the middle says more than the end
document.documentElement.dataset.playable = Math.round(performance.now());
