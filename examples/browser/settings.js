// The settings, and how a link holds them: those that are not the page's own, in the fragment of its address, such as
// #data=countries&steps=2000. Whatever a link says, a setting gets a value that the page offers.

export const SETTINGS = {
  data: [
    "names", "surnames", "cities", "countries", "elements", "chemicals", "molecules", "colors",
    "english", "french", "italian", "spanish", "roman", "sums", "own",
  ],
  format: ["lines", "text"],
  n_embd: [8, 16, 32, 64, 128],
  n_layer: [1, 2, 3, 4],
  n_head: [1, 2, 4, 8],
  block_size: [8, 16, 32, 64],
  steps: { min: 1, max: 1_000_000, whole: true },
  batch_size: [1, 4, 8, 16, 32],
  learning_rate: { min: 0.0001, max: 1 },
  dtype: ["float64", "float32"],
  val_fraction: [0, 0.1],
  temperature: { min: 0.1, max: 2 },
};

export const DEFAULTS = {
  data: "names",
  format: "lines",
  n_embd: 16,
  n_layer: 1,
  n_head: 4,
  block_size: 16,
  steps: 5000,
  batch_size: 1,
  learning_rate: 0.01,
  dtype: "float64",
  val_fraction: 0,
  temperature: 0.5,
};

/** The fragment for these settings, without #. A text of one's own is not in it. */
export function toFragment(settings) {
  const changed = Object.entries(settings).filter(
    ([name, value]) => name in DEFAULTS && value !== DEFAULTS[name] && !(name === "data" && value === "own"),
  );
  return new URLSearchParams(changed).toString();
}

/** The settings that a fragment, with or without #, asks for; defaults for all others. */
export function fromFragment(fragment) {
  const settings = { ...DEFAULTS };
  for (const [name, text] of new URLSearchParams(fragment.replace(/^#/, ""))) {
    const allowed = Object.hasOwn(SETTINGS, name) ? SETTINGS[name] : [];
    if (Array.isArray(allowed)) {
      const value = allowed.find((each) => String(each) === text);
      if (value !== undefined && value !== "own") settings[name] = value;
    } else {
      const value = Number(text);
      const fits = text !== "" && value >= allowed.min && value <= allowed.max;
      if (fits && (!allowed.whole || Number.isInteger(value))) settings[name] = value;
    }
  }
  return settings;
}
