// The page: it shows what the worker answers, see playground.py for the messages.
import { Letters } from "../../microgpt/display/letters.js";
import { DEFAULTS, fromFragment, toFragment } from "./settings.js";

const SLICE = 80; // milliseconds of training from one picture to the next
const SAMPLES = 24; // as many as playground.py draws while it trains
const ORIGINAL = { ...DEFAULTS, steps: 1000 };

const $ = (id) => document.getElementById(id);
const form = $("settings");
const letters = new Letters($("letters"));
const number = new Intl.NumberFormat("en-US");
const opened = performance.now();
let isReady = false; // Python is there
let model = null; // what the worker says of its model
let isTraining = false;
let shouldStop = false;
let seed = 1; // of the samples
let data = new Set(); // the lines that the model has learnt from

// The worker, asked one question at a time.

const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let asked = 0;

/** What the user asked for is not possible. */
class Refusal extends Error {}

/** The worker's answer; `Refusal` says why there is none. */
function ask(request) {
  return new Promise((resolve, reject) => {
    waiting.set(++asked, (answer) => (answer.error ? reject(new Refusal(answer.error)) : resolve(answer)));
    worker.postMessage({ id: asked, request });
  });
}

worker.addEventListener("message", ({ data }) => {
  if (data.stage) say(data.stage);
  if (data.ready) begin();
  if (data.failed) fail(`Python could not be loaded: ${data.failed}`);
  if (data.id) {
    const answered = waiting.get(data.id);
    waiting.delete(data.id);
    answered(data.answer);
  }
});
worker.addEventListener("error", (event) => fail(`Python could not be started: ${event.message ?? "see the console"}`));

function fail(message) {
  $("status").hidden = true;
  $("error").textContent = message;
}

/** Say what is going on, also to screen readers. */
function say(text, state = "is-busy") {
  $("status").className = state;
  $("status-text").textContent = text;
}

/** Do what may be refused, and then tell the user why. */
async function attempt(task) {
  $("error").textContent = "";
  try {
    await task();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    $("error").textContent = error.message;
    say("Ready", "is-ready");
  }
}

// Settings: the form, and the fragment of the address.

function settings() {
  const values = {};
  for (const [name, initial] of Object.entries(DEFAULTS)) {
    const field = $(name);
    const value = field.type === "checkbox" ? (field.checked ? 0.1 : 0) : field.value;
    values[name] = typeof initial === "number" ? Number(value) : value;
  }
  return values;
}

function setForm(values) {
  for (const [name, value] of Object.entries(values)) {
    const field = $(name);
    if (field.type === "checkbox") field.checked = Boolean(value);
    else field.value = value;
  }
  describe();
}

/** What follows from the settings: the address, the size of the model, the words about the data. */
function describe() {
  const values = settings();
  const fragment = toFragment(values);
  history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
  const text = $("text").value;
  const lines = linesOf(text);
  const characters = new Set(values.format === "lines" ? lines.join("") : text).size;
  const count =
    values.format === "lines" ? `${number.format(lines.length)} lines` : `${number.format(text.length)} letters`;
  $("facts").textContent = text ? `${count}, ${characters} different letters` : " ";
  const tokens = characters + (values.format === "lines" || !text.includes("\n") ? 1 : 0);
  const params = (2 * tokens + values.block_size) * values.n_embd + 12 * values.n_layer * values.n_embd ** 2;
  $("params").textContent = text ? `${number.format(params)} parameters` : " ";
  $("temperature-value").textContent = values.temperature.toFixed(1);
  if (!model && text) guess(Math.log(tokens), tokens);
}

const linesOf = (text) =>
  text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);

function guess(loss, tokens) {
  $("guessing").textContent = `Whoever guesses blindly among ${tokens} has a loss of ${loss.toFixed(2)}`;
}

async function loadData(name) {
  if (name === "own") return;
  $("text").value = (await ask({ do: "data", name })).text;
  describe();
}

// Training.

async function train() {
  const { data: _, temperature, val_fraction, ...options } = settings();
  if (val_fraction) options.val_fraction = val_fraction;
  const text = $("text").value;
  await attempt(async () => {
    showModel(await ask({ do: "start", text, options }));
    data = new Set(options.format === "lines" ? linesOf(text) : []);
    await keepTraining();
  });
}

async function keepTraining() {
  isTraining = true;
  shouldStop = false;
  buttons();
  say("Training …");
  try {
    let answer;
    do {
      answer = await ask({ do: "advance", milliseconds: SLICE, temperature: settings().temperature });
      showRun(answer.run);
      if (answer.samples) showSamples(answer.samples);
    } while (!answer.run.is_over && !shouldStop);
    const { step, seconds, is_over } = answer.run;
    const time = seconds < 1 ? `${Math.max(1, Math.round(1000 * seconds))} ms` : `${seconds.toFixed(1)} s`;
    say(
      `${is_over ? "Trained" : "Stopped after"} ${number.format(step)} steps in ${time}, loss ${$("loss").textContent}`,
      "is-ready",
    );
    isTraining = false;
    buttons(!is_over);
    await sample();
    await draw(false);
  } catch (error) {
    isTraining = false;
    buttons();
    throw error;
  }
}

/** Which buttons can be pressed now. */
function buttons(canContinue = false) {
  const focused = document.activeElement;
  $("train").hidden = isTraining;
  $("train").disabled = !isReady;
  $("train").textContent = canContinue ? "Start over" : "Train";
  $("stop").hidden = !isTraining;
  $("continue").hidden = !canContinue || isTraining;
  for (const id of ["again", "draw-button", "save"]) $(id).disabled = !model || isTraining;
  $("open").disabled = !isReady || isTraining;
  if (focused?.hidden) (isTraining ? $("stop") : canContinue ? $("continue") : $("train")).focus();
}

function showModel({ model: described, run }) {
  model = described;
  guess(model.guessing, model.vocab_size);
  showRun(run);
}

function showRun(run) {
  if (run.curve) $("curve").innerHTML = run.curve;
  else $("curve").replaceChildren(paragraph("The model has no record of its training."));
  $("progress").value = run.steps ? run.step / run.steps : 0;
  const loss = run.validation ?? run.loss;
  const isKnown = Number.isFinite(loss);
  document.querySelector(".number").hidden = !isKnown;
  if (isKnown) {
    $("loss").textContent = loss.toFixed(2);
    const unsure = `as unsure as if it chose among ${Math.exp(loss).toFixed(1)} equally likely letters`;
    const heart = "On data that it has not seen, it does worse than guessing: it has learnt the data by heart. ";
    $("loss-words").firstChild.textContent =
      run.validation === null
        ? `A${unsure.slice(1)}. `
        : loss > model.guessing
          ? heart
          : `On data that it has not seen, it is ${unsure}. `;
  }
}

function paragraph(text) {
  const made = document.createElement("p");
  made.className = "empty";
  made.textContent = text;
  return made;
}

// What it writes.

function showSamples(samples) {
  const list = document.createElement("ol");
  list.id = "samples";
  list.className = model.format === "text" ? "samples is-text" : "samples";
  for (const text of samples) {
    const isolated = document.createElement("bdi");
    isolated.textContent = text;
    const item = document.createElement("li");
    item.append(isolated);
    if (data.has(text)) {
      item.className = "known";
      item.title = "in the data";
    }
    list.append(item);
  }
  $("samples").replaceWith(list);
  const known = samples.filter((text) => data.has(text)).length;
  $("known").textContent = data.size
    ? `${known} of these ${samples.length} are in the data, in grey; the others are new.`
    : "\u00a0";
}

async function sample() {
  const { temperature } = settings();
  showSamples((await ask({ do: "sample", n: SAMPLES, temperature, seed })).samples);
}

async function draw(animate) {
  const { temperature } = settings();
  const { drawing } = await ask({ do: "draw", temperature, prompt: $("prompt").value, seed });
  letters.show(drawing, animate);
}

// Files.

function download(name, base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function toBase64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

// Events.

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!isReady || isTraining) return;
  if (innerWidth < 960) $("results").scrollIntoView(); // below the settings there
  train();
});
form.addEventListener("input", (event) => {
  if (event.target.id === "text") $("data").value = "own";
  describe();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
form.addEventListener("change", (event) => {
  if (event.target.id === "data") attempt(() => loadData($("data").value));
});
$("file").addEventListener("change", async ({ target }) => {
  if (!target.files.length) return;
  $("text").value = await target.files[0].text();
  $("data").value = "own";
  target.value = "";
  describe();
});
$("stop").addEventListener("click", () => (shouldStop = true));
$("continue").addEventListener("click", () => attempt(keepTraining));
$("temperature").addEventListener("input", () => {
  describe();
  if (model && !isTraining) attempt(sample);
});
$("temperature").addEventListener("change", () => {
  if (model && !isTraining) attempt(() => draw(false));
});
$("again").addEventListener("click", () => {
  seed++;
  attempt(sample);
});
$("draw").addEventListener("submit", (event) => {
  event.preventDefault();
  seed++;
  if (model && !isTraining) attempt(() => draw(true));
});
$("save").addEventListener("click", () =>
  attempt(async () => download("model.safetensors", (await ask({ do: "save" })).content)),
);
$("open").addEventListener("change", ({ target }) =>
  attempt(async () => {
    if (!target.files.length) return;
    const content = await toBase64(target.files[0]);
    target.value = "";
    showModel(await ask({ do: "load", content }));
    data = new Set();
    say("Opened the model", "is-ready");
    buttons();
    await sample();
    await draw(false);
  }),
);
$("share").addEventListener("click", async () => {
  describe();
  try {
    await navigator.clipboard.writeText(location.href);
    say("Copied the link", "is-ready");
  } catch {
    say("The address of this page is the link", "is-ready");
  }
});
$("reset").addEventListener("click", async () => {
  setForm(ORIGINAL);
  await attempt(() => loadData("names"));
});
addEventListener("hashchange", () => {
  setForm(fromFragment(location.hash));
  attempt(() => loadData($("data").value));
});

async function begin() {
  isReady = true;
  const about = await ask({ do: "describe" });
  $("about").textContent = `microgpt-fast ${about.version}, ${about.instruction_set ?? "pure Python"}.`;
  const slow = about.backend === "compiled" ? "" : " The compiled engine is missing here: training is slow.";
  await attempt(() => loadData($("data").value));
  say(`Ready after ${((performance.now() - opened) / 1000).toFixed(1)} s.${slow}`, "is-ready");
  document.documentElement.dataset.ready = Math.round(performance.now());
  buttons();
}

setForm(fromFragment(location.hash));
