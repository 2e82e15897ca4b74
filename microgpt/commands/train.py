"""Train a model on a text file, one document a line, and sample from it.

examples:
  microgpt train names.txt --steps 5000 --n-embd 32
  microgpt train names.txt --val-fraction 0.1 --out names.safetensors --resume
  xzcat words.xz | microgpt train - more-words.txt.gz --tokenizer bytes
  microgpt train text.txt --format text --dtype float32 --block-size 64 --batch-size 12 --time 60s
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from microgpt.commands._options import add_machine_arguments
from microgpt.commands.output import printed
from microgpt.config import ACTIVATIONS
from microgpt.display.plots import check_plot_path, plot_losses
from microgpt.display.summary import describe_held_out
from microgpt.engine.backend import why_pure
from microgpt.history import TrainingProgress, lowest_validation_loss
from microgpt.sampling import SAMPLES, TEMPERATURE, Sampler
from microgpt.training.recipe import defaults_of
from microgpt.training.run import VALIDATIONS, Run
from microgpt.training.train import prepare
from microgpt.utils.arguments import integer, shown_path
from microgpt.utils.files import check_different


def duration(text: str) -> float:
    """Seconds of a text such as 90, 60s, 5m or 1.5h."""
    match = re.fullmatch(r"(\d+\.?\d*)(s|m|h|)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be a time such as 60s, 5m or 1.5h, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def number_or_scaled(text: str) -> float | str:
    """The number that a text is, or the text itself, for `GPTConfig` to judge."""
    try:
        return float(text)
    except ValueError:
        return text


Option = tuple[Callable[[str], Any] | None, str]  # the type, or None for a flag, and the help
OPTIONS: dict[str, dict[str, Option]] = {
    "data": {
        "format": (str, "lines: each line is a document; text: it is all one text, of which each step draws windows"),
        "tokenizer": (str, "characters, bytes, or a FILE.json of Hugging Face's tokenizers"),
        "long_documents": (str, "train of documents longer than the context on, cut: the beginning; split: all pieces"),
        "val_fraction": (float, "share of the data to hold out, for validation; 0.1 is a good one"),
        "seed": (int, "of the random numbers: the same seed gives the same model"),
    },
    "model": {
        "n_layer": (int, "transformer blocks"),
        "n_embd": (int, "width of the model, a multiple of --n-head"),
        "block_size": (int, "longest context, in tokens"),
        "n_head": (int, "attention heads"),
        "activation": (str, f"of the MLP: {' or '.join(ACTIVATIONS)}"),
        "init_std": (number_or_scaled, "standard deviation of fresh parameters, or scaled: by their fan-in"),
        "dtype": (str, "float64: the numbers of microgpt, bit for bit; float32: faster"),
    },
    "training": {
        "steps": (int, "steps of Adam; 1000 unless --epochs or --time is given"),
        "epochs": (float, "instead of --steps: how often to go through the data"),
        "time": (duration, "instead of --steps: how long to train, such as 60s, 5m or 1.5h"),
        "batch_size": (int, "documents, or windows, in a step"),
        "learning_rate": (float, "the highest of the run"),
        "schedule": (str, "how it falls: linear or cosine, to 0, or constant"),
        "warmup_steps": (int, "in which it rises first"),
        "beta1": (float, "decay of Adam's mean of the gradients"),
        "beta2": (float, "decay of Adam's mean of their squares"),
        "eps": (float, "added to the root of that mean"),
        "weight_decay": (float, "of AdamW: how much parameters shrink in a step, times the learning rate"),
        "max_grad_norm": (float, "clip the gradients where their norm is more than this"),
        "patience": (int, "end after so many validations without a new lowest loss"),
    },
    "files": {
        "out": (Path, "checkpoint to write: the model, and all that a run needs to go on"),
        "resume": (None, "go on from --out, bit for bit as if never interrupted, where it exists"),
        "checkpoint_every": (int, "steps from one checkpoint to the next; by default there is one a minute"),
        "keep_best": (None, "also keep the model with the lowest validation loss, beside --out"),
        "log": (Path, "metrics, one JSON object a line"),
        "log_every": (int, "steps from one line of --log to the next; by default 10"),
        "eval_every": (int, "steps from one validation to the next; by default there are about 40 in a run"),
        "eval_tokens": (int, "held-out tokens that each validation predicts, at most; by default 32,768"),
    },
}
METAVARS = {int: "N", float: "X", str: "NAME", Path: "FILE", duration: "TIME", number_or_scaled: "X"}
LINES = 10  # of progress, where there is no terminal
LINE_PAUSE = 0.5  # seconds at least from one line of a validation to the next, on a terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, what `prepare` takes, and what the report looks like."""
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        type=Path,
        help="UTF-8; .gz is decompressed, - is standard input; default: US first names that come with the package",
    )
    defaults = defaults_of(prepare)
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for name, (kind, text) in options.items():
            if kind is None:
                group.add_argument(option(name), action="store_true", help=text)
            else:
                group.add_argument(option(name), type=kind, default=defaults[name], metavar=METAVARS[kind], help=text)
    add_machine_arguments(parser)
    group = parser.add_argument_group("what is printed")
    group.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help="documents to sample after training")
    group.add_argument(
        "--temperature", type=float, default=TEMPERATURE, metavar="X", help="of the samples; 0: the likeliest"
    )
    group.add_argument("--plot", metavar="FILE", help="draw the losses into a .png, .svg or .pdf")
    group.add_argument("--plain", action="store_true", help="print exactly what microgpt prints")


def option(name: str) -> str:
    """The command line's spelling of an argument."""
    return "--" + name.replace("_", "-")


def run(parsed: argparse.Namespace) -> None:
    """Train, and print what a person, or with --plain a program, wants to read."""
    integer("samples", parsed.samples, 0), Sampler(parsed.temperature)  # refused before training, not after it
    if parsed.plot is not None:
        check_plot_path(parsed.plot)
    options = {name: getattr(parsed, name) for group in OPTIONS.values() for name in group}
    training = prepare(parsed.files or None, backend=parsed.backend, threads=parsed.threads, **options)
    if parsed.plot is not None:
        check_different({"plot": parsed.plot}, training.files)
    report = plain_report if parsed.plain else human_report
    try:
        report(parsed, training)
    except (KeyboardInterrupt, SystemExit):
        if training.saved_step == training.step:
            print(
                f"stopped after step {training.step:,}: {shown_path(parsed.out)} is saved, --resume goes on",
                file=sys.stderr,
            )
        raise
    if parsed.plot is not None:
        plot_losses(training.history, parsed.plot)


def plain_report(parsed: argparse.Namespace, run: Run) -> None:
    """Byte for byte what microgpt prints."""
    if run.steps is None:
        raise ValueError("plain needs a number of steps or epochs, which it prints, not a time")
    print(f"num docs: {len(run.corpus)}")
    print(f"vocab size: {run.model.config.vocab_size}")
    print(f"num params: {run.model.num_params}", flush=True)  # or a pipe would keep it until it is full
    printed = run.step

    def watch(progress: TrainingProgress) -> None:
        nonlocal printed
        losses = enumerate(run.losses[printed : progress.step].tolist(), printed + 1)
        sys.stdout.write("".join(f"step {step:4d} / {run.steps:4d} | loss {loss:.4f}\r" for step, loss in losses))
        printed = progress.step

    model = run.train(watch).model
    print("\n--- inference (new, hallucinated names) ---")
    for i in range(parsed.samples):
        print(f"sample {i + 1:2d}: {model.generate(1, parsed.temperature)[0]}")


def human_report(parsed: argparse.Namespace, run: Run) -> None:
    """What is trained on what, how far it is, and the samples."""
    config, model = run.model.config, run.model
    kind = "documents" if parsed.format == "lines" else "characters"
    count = len(run.corpus) if parsed.format == "lines" else run.corpus.characters
    longer = run.corpus.count_longer(config.block_size) if parsed.format == "lines" else 0
    cut = f", {longer:,} of them cut to the context" if longer and parsed.long_documents == "cut" else ""
    print(f"data    {run.corpus.name}: {count:,} {kind}{cut}, {config.vocab_size} tokens")
    print(
        f"model   {model.num_params:,} parameters: n_layer {config.n_layer}, n_embd {config.n_embd}, "
        f"block_size {config.block_size}, n_head {config.n_head}; {model.dtype}, {model.backend}"
    )
    if parsed.backend is None and (why := why_pure()):
        print(f"slow    {why}")
    if run.held_out_tokens:
        part = describe_held_out(run.validation_tokens, run.held_out_tokens)
        often = f"every {run.eval_every:,} steps" if run.eval_every is not None else f"{VALIDATIONS} times"
        print(f"eval    {often}, on {part}")
    first, seconds = run.step, run.seconds
    if first:
        print(f"resumed {shown_path(parsed.out)} after step {first:,}")
    with live_line(run) if sys.stderr.isatty() else quiet_lines(run) as watch:
        result = run.train(watch)
    steps, seconds = run.step - first, run.seconds - seconds
    if steps:
        last = result.losses[-100:]
        print(
            f"trained {steps:,} steps in {seconds:.2f} s ({steps / seconds:,.0f} steps/s, "
            f"{steps * run.tokens_per_step / seconds:,.0f} tokens/s); "
            f"mean loss of the last {len(last)}: {last.mean():.4f}"
        )
    if result.validation_losses:
        step, loss = lowest_validation_loss(result.validation_losses)
        print(f"lowest validation loss {loss:.4f}, after step {step:,}")
    if parsed.out is not None and not run.has_saved:
        print(f"nothing left to do: the run in {shown_path(parsed.out)} is over, and its file is left as it was")
    elif parsed.out is not None:
        best = run.recorder.best
        and_best = f" and {shown_path(best)}" if best is not None and os.path.exists(best) else ""
        print(f"saved   {shown_path(parsed.out)}{and_best}")
    for text in model.generate(parsed.samples, parsed.temperature):
        print(f"        {printed(text)}")


Watcher = Callable[[TrainingProgress], None]


@contextlib.contextmanager
def live_line(run: Run) -> Iterator[Watcher]:
    """Step, losses, tokens/s and the time left on one line of the terminal.

    The latest validation is there, too. Those that come in quick succession have no line of their own on a terminal.
    """
    left = "{remaining} left" if run.steps is not None else "{elapsed}"
    layout = "step {n_fmt}" + ("/{total_fmt}" if run.steps is not None else "") + "{postfix} | " + left
    first, shown, is_terminal = run.step, latest_validation(run), sys.stdout.isatty()
    unprinted, printed_at = None, -math.inf
    tqdm.monitor_interval = 0  # no thread of its own: with miniters=1, it would have nothing to do
    with tqdm(total=run.steps, initial=first, bar_format=layout, leave=False, miniters=1) as line:

        def watch(progress: TrainingProgress) -> None:
            nonlocal shown, unprinted, printed_at
            if progress.validation != shown:
                shown, unprinted = progress.validation, validation_line(progress)
                if not is_terminal or time.monotonic() - printed_at >= LINE_PAUSE:
                    tqdm.write(unprinted, file=sys.stdout)
                    unprinted, printed_at = None, time.monotonic()
            if progress.step == first:
                return
            validation = "" if shown is None else f"  validation loss {shown[1]:.4f}"
            speed = f"{progress.tokens_per_second:,.0f} tokens/s"
            line.set_postfix_str(f"loss {progress.loss:.4f}{validation} | {speed}", refresh=False)
            line.update(progress.step - line.n)

        yield watch
        if unprinted is not None:
            tqdm.write(unprinted, file=sys.stdout)


@contextlib.contextmanager
def quiet_lines(run: Run) -> Iterator[Watcher]:
    """A line now and then, for a log that nobody watches."""
    printed, shown = lines_due(run, run.step), latest_validation(run)

    def watch(progress: TrainingProgress) -> None:
        nonlocal printed, shown
        if progress.validation != shown:
            print(validation_line(progress), flush=True)
            shown = progress.validation
        due = lines_due(run, progress.step)
        if due > printed:
            printed = due
            of_all = f"  {progress.seconds:.1f} s" if progress.steps is None else f"/{progress.steps:,}"
            print(f"step {progress.step:,}{of_all}  loss {progress.loss:.4f}", file=sys.stderr)

    yield watch


def latest_validation(run: Run) -> tuple[int, float] | None:
    """Step and loss of the latest validation, which an interrupted run may have printed already."""
    return run.validation_losses[-1] if run.validation_losses else None


def lines_due(run: Run, step: int) -> int:
    """How many of LINES there are by this step: they are spread over all steps, or all the time."""
    if run.recipe.time is not None:
        return int(min(LINES, LINES * run.seconds / run.recipe.time))
    return LINES * step // (run.steps or 1)


def validation_line(progress: TrainingProgress) -> str:
    """Step, time and validation loss."""
    assert progress.validation is not None
    step, loss = progress.validation
    return f"step {step:>7,}  {progress.seconds:6.1f} s  validation loss {loss:.4f}"
