// A document, letter by letter: what the model expected in the place of each, and what it attended to.
//
// It is drawn from plain data, whoever computed them:
//
//     labels   of the tokens that the model read, the first of which was given, usually BOS
//     first    how many of them were given
//     steps    for each of them {label, probability, candidates, attention}: the token that came next and its
//              probability, the likeliest tokens as [label, probability], and the attention to each token so far,
//              [layer][head][position]

const PAUSE = 500; // milliseconds from one letter to the next
const MOST_ROWS = 8; // heads in rows of full height

/** An element: its children are elements and texts. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") made.style.cssText = value;
    else if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;

export class Letters {
  #root;
  #timer = 0;

  /** Show documents in the element `root`. */
  constructor(root) {
    this.#root = root;
  }

  /** Show a document: letter by letter if `animate`, else as a whole. */
  show(drawing, animate) {
    this.pause();
    this.drawing = drawing;
    this.#build();
    if (animate && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.#select(Math.min(drawing.first, drawing.steps.length) || 1, true);
      this.play();
    } else {
      this.#select(Math.ceil(drawing.steps.length / 2)); // its end is less interesting
    }
  }

  /** Draw the letters after the selected one, or all again if it is the last. */
  play() {
    if (this.selected === this.drawing.steps.length)
      this.#select(Math.min(this.drawing.first, this.selected) || 1, true);
    this.#playing(true);
    this.#timer = setInterval(() => {
      if (this.selected < this.drawing.steps.length) this.#select(this.selected + 1, true);
      if (this.selected === this.drawing.steps.length) this.pause();
    }, PAUSE);
  }

  /** Stop at the selected letter. */
  pause() {
    clearInterval(this.#timer);
    this.#timer = 0;
    if (this.drawing) this.#playing(false);
  }

  #playing(is) {
    this.toggle.textContent = is ? "Pause" : "Play";
    this.after.setAttribute("aria-live", is ? "off" : "polite");
    if (!is) for (const later of this.#root.querySelectorAll(".is-later")) later.classList.remove("is-later");
  }

  #build() {
    const { labels, first, steps } = this.drawing;
    this.tiles = [...labels, steps.at(-1).label].map((label, i) => {
      const classes = ["tile", i < first && "is-given", label.length > 2 && "is-long"].filter(Boolean).join(" ");
      if (i === 0)
        return element("span", { class: classes, style: "display: inline-grid; place-items: center" }, label);
      const name = `${label}, letter ${i}: ${i < first ? "given" : percent(steps[i - 1].probability)}`;
      const tile = element("button", { class: classes, type: "button", "aria-label": name }, element("bdi", {}, label));
      tile.addEventListener("click", () => this.#choose(i));
      return tile;
    });
    const heads = steps[0].attention.flatMap((layer, l) => layer.map((_, h) => [l, h]));
    const isDeep = steps[0].attention.length > 1;
    this.cells = heads.map(() => this.tiles.map(() => element("div", { class: "weight" })));
    const rows = heads.map(([layer, head], row) =>
      element(
        "tr",
        {},
        element(
          "th",
          { scope: "row" },
          element("span", { class: head > 0 || !isDeep ? "hidden-text" : undefined }, `layer ${layer}, `),
          `head ${head}`,
        ),
        ...this.cells[row].map((cell) => element("td", {}, cell)),
      ),
    );
    const table = element(
      "table",
      { class: heads.length > MOST_ROWS ? "is-tight" : undefined },
      element("caption", { class: "hidden-text" }, "The letters, and how much each head attends to them"),
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          element("th", { scope: "row" }, element("span", { class: "hidden-text" }, "letter")),
          ...this.tiles.map((tile) => element("td", {}, tile)),
        ),
      ),
      element("tbody", {}, ...rows),
    );
    table.tHead.addEventListener("keydown", (event) => this.#key(event));
    this.toggle = element("button", { type: "button" }, "Play");
    this.toggle.addEventListener("click", () => (this.#timer ? this.pause() : this.play()));
    this.back = element("button", { type: "button" }, "Back");
    this.back.addEventListener("click", () => this.#choose(this.selected - 1));
    this.forward = element("button", { type: "button" }, "Forward");
    this.forward.addEventListener("click", () => this.#choose(this.selected + 1));
    this.after = element("h3", { "aria-live": "polite" });
    this.next = element("ol", { class: "next" });
    this.#root.replaceChildren(
      element(
        "div",
        { class: "letters" },
        element("div", { class: "player" }, this.toggle, this.back, this.forward),
        element("div", { class: "scroll" }, table),
        element("div", {}, this.after, this.next),
      ),
    );
  }

  /** Select a letter on the user's behalf. */
  #choose(i) {
    this.pause();
    this.#select(i);
  }

  #select(i, hideLater = false) {
    const { labels, first, steps } = this.drawing;
    this.selected = i;
    const step = steps[i - 1];
    this.back.disabled = i <= 1;
    this.forward.disabled = i >= steps.length;
    this.tiles.forEach((tile, k) => {
      if (k > 0) {
        tile.setAttribute("aria-pressed", k === i);
        tile.tabIndex = k === i ? 0 : -1;
      }
      tile.classList.toggle("is-later", hideLater && k > i);
    });
    step.attention.flat().forEach((weights, row) =>
      this.cells[row].forEach((cell, k) => {
        const weight = weights[k] ?? 0;
        cell.style.setProperty("--opacity", `${100 * Math.sqrt(weight)}%`); // small weights remain visible
        cell.style.visibility = k < i ? "visible" : "hidden";
        cell.title = k < i ? `${percent(weight)} to ${labels[k]}` : "";
        cell.replaceChildren(element("span", { class: "hidden-text" }, k < i ? percent(weight) : ""));
      }),
    );
    const before = labels
      .slice(0, i)
      .slice(labels[0] === "BOS" ? 1 : 0)
      .join("");
    const came = i < first ? `${step.label} was given` : `${step.label} was drawn`;
    this.after.replaceChildren(
      before ? `After “${before}”` : "At the beginning",
      element("span", { class: "hidden-text" }, `: ${came}, ${percent(step.probability)}`),
    );
    const shown = [...step.candidates];
    if (!shown.some(([label]) => label === step.label)) shown[shown.length - 1] = [step.label, step.probability];
    this.next.replaceChildren(
      ...shown.map(([label, share]) =>
        element(
          "li",
          { class: label === step.label ? "candidate came" : "candidate", style: `--share: ${100 * share}%` },
          element("bdi", {}, label),
          element("span", {}, percent(share)),
        ),
      ),
    );
    this.tiles[i].scrollIntoView?.({ block: "nearest", inline: "nearest" });
  }

  #key(event) {
    const last = this.drawing.steps.length;
    const target = { ArrowLeft: this.selected - 1, ArrowRight: this.selected + 1, Home: 1, End: last }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    this.#choose(Math.min(Math.max(target, 1), last));
    this.tiles[this.selected].focus();
  }
}
