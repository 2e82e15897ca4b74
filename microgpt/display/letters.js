// A document, letter by letter: what the model expected in the place of each, and what it attended to. The report and the
// playground show it.
//
// It is drawn from plain data, whoever computed them:
//
//     labels   of the tokens that the model read, the first of which was given, usually BOS
//     first    how many of them were given
//     steps    for each of them
//              label, probability   of the token that came next; undefined where nothing has come yet
//              candidates           the likeliest tokens, as [label, probability]
//              attention            to each token so far, [layer][head][position]
//              begin                the token at position 0; without it, the first
//              token                if there is a choice: the id of what came next, third in candidates, too

const PAUSE = 500; // milliseconds from one letter to the next
const SLICE = 40; // milliseconds of drawing from one picture to the next
const MOST_ROWS = 8; // heads in rows of full height
const MOST_TILES = 72; // letters side by side
const MOST_CANDIDATES = 10;
const AHEAD = 80; // pixels right of the letter to which the table has scrolled
const MOST_BEFORE = 16; // letters in the heading

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

function button(content, onClick, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, content);
  made.addEventListener("click", onClick);
  return made;
}

const hiddenText = (text) => element("span", { class: "hidden-text" }, text);

function percent(share) {
  if (share > 0 && share < 0.0005) return "<0.1%";
  return `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
}

export class Letters {
  #root;
  #extend;
  #choose;
  #run = 0; // the number of the last animation, which ends when there is another
  #isPlaying = false;
  #layer = "all";
  #head = "all";

  /**
   * Show documents in the element `root`.
   *
   * `extend(isFirst)` draws the letter of the last step, and returns the drawing with it, or undefined if the document
   * is over; `isFirst` is false where drawing goes on by itself. `choose(token, i)` puts a token in the place of letter
   * i. Without them, there are only the letters that `show` is given.
   */
  constructor(root, { extend, choose } = {}) {
    this.#root = root;
    this.#extend = extend ?? (() => undefined);
    this.#choose = choose;
  }

  /** Show a document: letter by letter if `animate`, else as a whole, with letter `selected` or one in the middle. */
  show(drawing, animate, selected = Math.ceil(drawing.steps.length / 2)) {
    this.pause();
    this.drawing = drawing;
    const { attention } = drawing.steps[0];
    if (!this.toggle || attention.length !== this.layers || attention[0].length !== this.heads) this.#build();
    if (!animate) this.#select(selected);
    else if (matchMedia("(prefers-reduced-motion: reduce)").matches) this.finish();
    else this.play(true);
  }

  /** Show the letters after the selected one, one by one; those of the whole document if there are none, or `anew`. */
  play(anew = this.selected === this.drawing.steps.length && !this.#isOpen(this.selected)) {
    this.#start();
    const run = this.#run;
    const next = (isFirst) => {
      if (run !== this.#run) return;
      if (this.#forward(isFirst)) {
        setTimeout(next, PAUSE, false);
        return;
      }
      this.pause();
      this.#select(this.selected); // which screen readers announce now
    };
    if (anew) {
      this.#select(Math.max(1, Math.min(this.drawing.first, this.drawing.steps.length)));
      setTimeout(next, PAUSE, true);
    } else next(true);
  }

  /** Draw all letters at once, and select the last. Returns whether nothing else has been asked for before the end. */
  async finish() {
    this.#start();
    const run = this.#run;
    let painted = performance.now();
    for (let isFirst = true; this.#isOpen(this.drawing.steps.length) && this.#draw(isFirst); isFirst = false) {
      if (performance.now() < painted + SLICE) continue;
      this.#select(this.#lastDrawn());
      await new Promise((resolve) => setTimeout(resolve));
      if (run !== this.#run) return false;
      painted = performance.now();
    }
    this.pause();
    this.#select(this.#lastDrawn());
    return true;
  }

  /** Stop at the selected letter. */
  pause() {
    this.#run++;
    this.#isPlaying = false;
    if (!this.toggle) return;
    this.toggle.textContent = "Play";
    this.after.setAttribute("aria-live", "polite");
    for (const later of this.#root.querySelectorAll(".is-later")) later.classList.remove("is-later");
  }

  #start() {
    this.pause();
    this.#isPlaying = true;
    this.toggle.textContent = "Pause";
    this.after.setAttribute("aria-live", "off");
  }

  /** Whether nothing has come yet in the place of letter i. */
  #isOpen(i) {
    return this.drawing.steps[i - 1].label === undefined;
  }

  #lastDrawn() {
    const { length } = this.drawing.steps;
    return Math.max(1, this.#isOpen(length) ? length - 1 : length);
  }

  /** Draw the letter of the last step. Returns whether there is one. */
  #draw(isFirst) {
    const drawing = this.#extend(isFirst);
    if (drawing) this.drawing = drawing;
    return Boolean(drawing);
  }

  /** Select the next letter, and draw it if it is not there. Returns whether there is one. */
  #forward(isFirst) {
    const next = this.#isOpen(this.selected) ? this.selected : this.selected + 1;
    if (next > this.drawing.steps.length || (this.#isOpen(next) && !this.#draw(isFirst))) return false;
    this.#select(next);
    return true;
  }

  #build() {
    this.layers = this.drawing.steps[0].attention.length;
    this.heads = this.drawing.steps[0].attention[0].length;
    this.#layer = this.layers * this.heads > MOST_ROWS && this.layers > 1 ? "0" : "all";
    this.#head = "all";
    this.toggle = button("Play", () => (this.#isPlaying ? this.pause() : this.play()));
    this.back = button("Back", () => this.#visit(Math.max(1, this.selected - 1)));
    this.forward = button("Forward", () => {
      this.pause();
      this.#forward(true);
    });
    this.end = button("To the end", () => this.finish());
    const choices = [
      this.#choice("Layer", this.layers, this.#layer, (value) => (this.#layer = value)),
      this.#choice("Head", this.heads, this.#head, (value) => (this.#head = value)),
    ];
    this.table = element("div", { class: "scroll" });
    this.after = element("h3", { "aria-live": "polite" });
    this.next = element("tbody");
    this.#root.replaceChildren(
      element(
        "div",
        { class: "letters" },
        element("div", { class: "player" }, this.toggle, this.back, this.forward, this.end, ...choices.flat()),
        this.table,
        element(
          "div",
          {},
          this.after,
          element(
            "table",
            { class: "next" },
            element("caption", { class: "hidden-text" }, "What the model expects next, likeliest first"),
            element(
              "thead",
              { class: "hidden-text" },
              element(
                "tr",
                {},
                element("th", { scope: "col" }, "token"),
                element("th", { scope: "col" }, "probability"),
              ),
            ),
            this.next,
          ),
        ),
      ),
    );
    this.table.addEventListener("keydown", (event) => this.#key(event));
  }

  /** A choice among all layers or heads and each of them, if there are several. */
  #choice(name, count, value, take) {
    if (count === 1) return [];
    const options = ["all", ...Array(count).keys()].map((each) => element("option", {}, String(each)));
    const select = element("select", {}, ...options);
    select.value = value;
    select.addEventListener("change", () => {
      take(select.value);
      this.#select(this.selected);
    });
    return [element("label", {}, `${name} `, select)];
  }

  /** Select a letter on the user's behalf. */
  #visit(i) {
    this.pause();
    this.#select(i);
  }

  #select(i) {
    this.selected = i;
    const hadFocus = this.table.contains(document.activeElement);
    this.#showTable(i);
    this.#showNext(i);
    const tile = this.table.querySelector("[aria-pressed=true]");
    if (hadFocus) tile.focus();
    this.#scrollTo(tile);
    // Not `disabled`, which would take the focus away.
    this.back.setAttribute("aria-disabled", i === 1);
    this.forward.setAttribute("aria-disabled", i === this.drawing.steps.length && !this.#isOpen(i));
  }

  /** Bring a letter into view, with those before it, and without moving the page. */
  #scrollTo(tile) {
    const { left, right } = tile.getBoundingClientRect();
    const box = this.table.getBoundingClientRect();
    const names = this.table.querySelector("th").getBoundingClientRect().width;
    if (left < box.left + names || right > box.right) this.table.scrollLeft += right - box.right + AHEAD;
  }

  /** The letters around number `selected`, and below each the attention to it. */
  #showTable(selected) {
    const count = this.drawing.steps.length + 1;
    const from = Math.max(0, Math.min(selected + 8, count) - MOST_TILES);
    const shown = Array.from({ length: Math.min(count - from, MOST_TILES) }, (_, k) => from + k);
    const tiles = shown.map((i) => element("td", {}, this.#tile(i, selected)));
    const heads = this.#chosenHeads(this.drawing.steps[selected - 1].attention);
    const isDeep = new Set(heads.map(({ layer }) => layer)).size > 1;
    const rows = heads.map(({ layer, head, weights }, row) => {
      const isFirst = isDeep && (row === 0 || heads[row - 1].layer !== layer);
      const name = [isFirst ? `layer ${layer}, ` : hiddenText(`layer ${layer}, `), `head ${head}`];
      const cells = shown.map((i) => element("td", {}, this.#weight(i, selected, weights)));
      return element("tr", {}, element("th", { scope: "row" }, ...name), ...cells);
    });
    this.table.replaceChildren(
      element(
        "table",
        { class: rows.length > MOST_ROWS && "is-tight" },
        element("caption", { class: "hidden-text" }, "The letters, and how much each head attends to them"),
        element("thead", {}, element("tr", {}, element("th", { scope: "row" }, hiddenText("letter")), ...tiles)),
        element("tbody", {}, ...rows),
      ),
    );
  }

  /** Letter i: a button that selects it, but for the first, before which there is nothing. */
  #tile(i, selected) {
    const { labels, first, steps } = this.drawing;
    const label = labels[i] ?? steps[i - 1].label ?? "";
    const isOpen = i > 0 && this.#isOpen(i);
    const classes = [
      "tile",
      i < first && "is-given",
      isOpen && "is-open",
      label.length > 2 && "is-long",
      this.#isPlaying && i > selected && "is-later",
    ];
    const attributes = { class: classes.filter(Boolean).join(" ") };
    if (i === 0) return element("span", attributes, label);
    const state = i < first ? "given" : isOpen ? "not drawn yet" : percent(steps[i - 1].probability);
    return button(element("bdi", {}, label), () => this.#visit(i), {
      ...attributes,
      "aria-label": `${label || "the next"}, letter ${i}: ${state}`,
      "aria-pressed": String(i === selected),
      tabindex: i === selected ? 0 : -1,
      "data-letter": i,
    });
  }

  /** The attention of the heads to be shown, as {layer, head, weights}. */
  #chosenHeads(attention) {
    const isChosen = (choice, i) => choice === "all" || choice === String(i);
    return attention
      .flatMap((heads, layer) => heads.map((weights, head) => ({ layer, head, weights })))
      .filter(({ layer, head }) => isChosen(this.#layer, layer) && isChosen(this.#head, head));
  }

  /** How much a head attends to letter i from the one before the selected one. */
  #weight(i, selected, weights) {
    const { begin = 0 } = this.drawing.steps[selected - 1];
    if (i < begin || i >= selected) return element("div", { class: "weight is-unseen" });
    const share = percent(weights[i - begin]);
    const style = `--opacity: ${100 * Math.sqrt(weights[i - begin])}%`; // so that small weights remain visible
    return element(
      "div",
      { class: "weight", style, title: `${share} to ${this.drawing.labels[i]}` },
      hiddenText(share),
    );
  }

  /** What the model expected in the place of letter i. */
  #showNext(i) {
    const { labels, first, steps } = this.drawing;
    const step = steps[i - 1];
    const begin = step.begin || Number(labels[0] === "BOS");
    const from = Math.max(begin, i - MOST_BEFORE);
    const before = (from > Number(labels[0] === "BOS") ? "…" : "") + labels.slice(from, i).join("");
    const state = `${step.label} was ${i < first ? "given" : "drawn"}`;
    this.after.replaceChildren(
      before ? `After “${before}”` : "At the beginning",
      ...(this.#isOpen(i) ? [] : [hiddenText(`: ${state}, ${percent(step.probability)}`)]),
    );
    const hasCome = ([label, , token]) => !this.#isOpen(i) && (token ?? label) === (step.token ?? step.label);
    const shown = [...step.candidates];
    if (!this.#isOpen(i) && !shown.some(hasCome))
      shown.splice(MOST_CANDIDATES - 1, 1, [step.label, step.probability, step.token]);
    const others = 1 - shown.reduce((sum, [, share]) => sum + share, 0);
    this.next.replaceChildren(
      ...shown.map((candidate) => {
        const [label, share, token] = candidate;
        const came = hasCome(candidate);
        const isolated = element("bdi", {}, label);
        const name = this.#choose ? button(isolated, () => this.#pick(token, i)) : isolated;
        return element(
          "tr",
          { class: came ? "candidate came" : "candidate", style: `--share: ${100 * share}%` },
          element("th", { scope: "row" }, name, came ? hiddenText(" came") : ""),
          element("td", {}, percent(share)),
        );
      }),
      ...(others > 0.0005
        ? [element("tr", {}, element("th", { scope: "row" }, "others"), element("td", {}, percent(others)))]
        : []),
    );
  }

  #pick(token, i) {
    this.#choose(token, i);
    this.next.querySelector("button").focus(); // the one that was pressed is gone
  }

  #key(event) {
    const last = this.drawing.steps.length;
    const target = { ArrowLeft: this.selected - 1, ArrowRight: this.selected + 1, Home: 1, End: last }[event.key];
    if (target === undefined || !event.target.matches(".tile")) return;
    event.preventDefault();
    this.#visit(Math.min(Math.max(target, 1), last));
  }
}
