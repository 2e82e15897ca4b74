"""The playground's Python: trains a model, and answers the page's messages.

It runs in a web worker, and in the tests without a browser. `Playground.handle` takes one message and returns one
answer, both JSON objects in text. The page can stop a run, because it asks for every tenth of a second of it:

| message                                          | answer                                                           |
|--------------------------------------------------|------------------------------------------------------------------|
| {do: "describe"}                                 | version, backend, instruction_set                                |
| {do: "data", name}                               | text: a data set of the package, one document a line              |
| {do: "start", text, options}                     | model, run: a run that is ready to train; `options` of `train`   |
| {do: "advance", milliseconds, temperature}       | run, and now and then samples                                    |
| {do: "sample", n, temperature, prompt, seed}     | samples: documents, or one text                                  |
| {do: "draw", temperature, prompt, seed}          | drawing: a document letter by letter, see `Playground._draw`     |
| {do: "save"}                                     | content: a safetensors file, in base64                           |
| {do: "load", content}                            | model, run: the model of such a file, and its history            |

Wrong input is answered by {error}: one line for the user.
"""

from __future__ import annotations

import base64
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import microgpt
from microgpt.display.curves import losses_svg
from microgpt.display.labels import token_labels
from microgpt.utils.files import to_json

SAMPLES = 24  # documents shown while a model trains
TEXT_TOKENS = 300  # of a continuous text
SEED = 1  # of the samples: the same random numbers from step to step, so that one sees a name improve
SAMPLING_SHARE = 0.1  # of the time of training
CANDIDATES = 10  # for the next letter
EVAL_TOKENS = 2048  # for each validation
SHORT = 500  # steps of a curve that is not stretched


class Playground:
    """A page's model, and its run if it has been trained here."""

    def __init__(self) -> None:
        self.model: microgpt.GPT | None = None
        self.run: microgpt.Run | None = None
        self._pace = math.nan  # seconds per step
        self._next_samples = 0.0  # when to draw samples, by the clock
        self._folder = Path(tempfile.mkdtemp())

    def handle(self, message: str) -> str:
        """The answer to a message."""
        request = json.loads(message)
        try:
            answer = getattr(self, f"_{request.pop('do')}")(**request)
        except (ValueError, TypeError, MemoryError) as error:
            answer = {"error": str(error).replace(f"{self._folder}/", "") or type(error).__name__}
        return to_json(answer)

    def _describe(self) -> dict[str, Any]:
        info = microgpt.backend_info()
        return {"version": microgpt.__version__, "backend": info.backend, "instruction_set": info.instruction_set}

    def _data(self, name: str) -> dict[str, Any]:
        return {"text": "\n".join(microgpt.load_dataset(name)) + "\n"}

    def _start(self, text: str, options: dict[str, Any]) -> dict[str, Any]:
        file = self._folder / "your text"
        file.write_text(text, encoding="utf-8")
        if options.get("val_fraction"):
            options = {"eval_tokens": EVAL_TOKENS, **options}
        run = microgpt.prepare(file, **options)
        self.run, self.model = run, run.model
        self._pace, self._next_samples = math.nan, 0.0
        return {"model": self._model(), "run": self._progress()}

    def _advance(self, milliseconds: float, temperature: float) -> dict[str, Any]:
        """Train for about so long, or to the end of the run."""
        run, began = self._started(), time.perf_counter()
        count = 1 if math.isnan(self._pace) else max(1, int(milliseconds / 1000 / self._pace))
        until = min(run.step + count, run.steps)
        if run.held_out_tokens:
            until = min(until, run.step + run.eval_every - run.step % run.eval_every)
        steps = until - run.step
        if until == run.steps or (run.held_out_tokens and until % run.eval_every == 0):
            run.train(until=until)  # with a validation
        else:
            run.advance(until)
        self._pace = max((time.perf_counter() - began) / max(1, steps), 1e-7)
        answer = {"run": self._progress()}
        now = time.perf_counter()
        if now >= self._next_samples or run.step == run.steps:
            answer |= self._sample(SAMPLES, temperature)
            took = time.perf_counter() - now
            self._next_samples = now + took / SAMPLING_SHARE
        return answer

    def _sample(self, n: int, temperature: float, prompt: str = "", seed: int = SEED) -> dict[str, Any]:
        model = self._made()
        if model.format == "lines":
            return {"samples": model.generate(n, temperature, seed, prompt=prompt)}
        text = prompt + "".join(model.stream(prompt, temperature, seed, max_tokens=TEXT_TOKENS))
        return {"samples": [text]}

    def _draw(self, temperature: float, prompt: str = "", seed: int = SEED) -> dict[str, Any]:
        """A document, and what the model computed for each of its letters.

        labels: those of the tokens that the model read, in order, usually BOS first.
        first: the number of them that were given: BOS and the prompt.
        steps: for each of them, what came next: the label and the probability of the token that was drawn or given, the
            likeliest tokens as [label, probability], and the attention to each token so far, [layer][head][position].
        """
        model = self._made()
        assert model.tokenizer is not None
        given = [model.bos] * model.reads_bos + model.tokenizer.encode(prompt)
        tokens = model.generate_tokens(1, temperature, seed, prompt=given[model.reads_bos :])[0]
        read = ([model.bos] * model.reads_bos + tokens or [model.bos])[: model.config.block_size]
        following = [*([model.bos] * model.reads_bos + tokens)[1:], model.bos][: len(read)]
        logits = model.logits(read).astype(np.float64) / temperature
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        attention = model.attention(read).round(3)
        likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :CANDIDATES]
        steps = [
            {
                "label": token_labels(model, [following[i]])[0],
                "candidates": [
                    [label, float(probabilities[i, token])]
                    for token, label in zip(likeliest[i], token_labels(model, likeliest[i].tolist()))
                ],
                "probability": float(probabilities[i, following[i]]),
                "attention": attention[:, :, i, : i + 1].tolist(),
            }
            for i in range(len(read))
        ]
        return {"drawing": {"labels": token_labels(model, read), "first": len(given), "steps": steps}}

    def _save(self) -> dict[str, Any]:
        model = self._made()
        if self.run is not None:
            model.history = self.run.history
        file = self._folder / "model.safetensors"
        model.save(file)
        return {"content": base64.b64encode(file.read_bytes()).decode()}

    def _load(self, content: str) -> dict[str, Any]:
        file = self._folder / "your model"
        file.write_bytes(base64.b64decode(content))
        model = microgpt.load(file)
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer, so it cannot write text")
        self.model, self.run = model, None
        return {"model": self._model(), "run": self._progress()}

    def _made(self) -> microgpt.GPT:
        if self.model is None:
            raise ValueError("there is no model yet: train one first")
        return self.model

    def _started(self) -> microgpt.Run:
        if self.run is None:
            raise ValueError("there is no run yet: start one first")
        return self.run

    def _model(self) -> dict[str, Any]:
        model = self._made()
        return {
            "params": model.num_params,
            "vocab_size": model.config.vocab_size,
            "guessing": math.log(model.config.vocab_size),
            "n_layer": model.config.n_layer,
            "n_head": model.config.n_head,
            "format": model.format,
            "dtype": model.dtype,
        }

    def _progress(self) -> dict[str, Any]:
        """The state of the run, and its curve as SVG; of a loaded model, the state in which it ended."""
        model = self._made()
        history = self.run.history if self.run else model.history
        if history is None:
            return {"step": 0, "steps": 0, "is_over": True, "curve": ""}
        step = len(history.losses)
        steps = end = self.run.steps if self.run else step
        while end > 2 * max(step, SHORT):  # the axis grows with the curve
            end //= 2
        recent = history.losses[-100:]
        return {
            "step": step,
            "steps": steps,
            "is_over": step == steps,
            "seconds": history.seconds,
            "loss": float(recent.mean()) if step else None,
            "validation": history.validation_losses[-1][1] if history.validation_losses else None,
            "curve": losses_svg(history, steps=end, guessing=math.log(model.config.vocab_size)),
        }
