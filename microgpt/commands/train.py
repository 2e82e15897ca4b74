"""Train a model on a text file, one document a line, and sample from it.

examples:
  microgpt train names.txt --steps 5000 --n-embd 32
  microgpt train --data elements
  microgpt train names.txt --val-fraction 0.1 --out names.safetensors --resume
  microgpt train villages.txt --init-from towns.safetensors --extend-vocabulary
  xzcat words.xz | microgpt train - more-words.txt.gz --tokenizer bytes
  microgpt train text.txt --format text --dtype float32 --block-size 64 --batch-size 12 --time 60s
  mpiexec -n 4 microgpt train text.txt --batch-size 64 --shards 8 --mpi --out text.safetensors
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from microgpt.commands._options import add_data_arguments, add_machine_arguments, data_of
from microgpt.commands._progress import live_line, printed_lines
from microgpt.commands.exit_status import USAGE
from microgpt.commands.output import printed
from microgpt.config import ACTIVATIONS
from microgpt.data.tokenizer import CharTokenizer
from microgpt.display.plots import check_plot_path, plot_losses
from microgpt.display.summary import describe_held_out
from microgpt.history import TrainingProgress, lowest_validation_loss
from microgpt.sampling import SAMPLES, TEMPERATURE, Sampler
from microgpt.training.recipe import Recipe, defaults_of
from microgpt.training.run import VALIDATIONS, Run, TrainingResult
from microgpt.training.train import prepare, train_with_ranks
from microgpt.utils.arguments import integer, shown_path
from microgpt.utils.files import check_different
from microgpt.utils.mpi import launched, mpi


def duration(text: str) -> float:
    """Parse a time such as 90, 60s, 5m or 1.5h into seconds."""
    match = re.fullmatch(r"(\d+\.?\d*)(s|m|h|)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be a time such as 60s, 5m or 1.5h, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def number_or_scaled(text: str) -> float | str:
    """Parse a number; other text stays as it is, for `GPTConfig` to check."""
    try:
        return float(text)
    except ValueError:
        return text


Option = tuple[Callable[[str], Any] | None, str]  # the type, or None for a flag, and the help
OPTIONS: dict[str, dict[str, Option]] = {
    "data": {
        "format": (
            str,
            "lines: each line is a document; text: one text, of which each step takes random windows",
        ),
        "tokenizer": (str, "characters, bytes, or a FILE.json of Hugging Face's tokenizers"),
        "long_documents": (str, "documents longer than the context: cut trains on the beginning, split on all pieces"),
        "val_fraction": (float, "fraction of the data to hold out for validation, such as 0.1"),
        "seed": (int, "random seed: the same seed gives the same model"),
    },
    "model": {
        "n_layer": (int, "transformer blocks"),
        "n_embd": (int, "width of the model, a multiple of --n-head"),
        "block_size": (int, "longest context, in tokens"),
        "n_head": (int, "attention heads"),
        "activation": (str, f"activation of the MLP: {', '.join(ACTIVATIONS)}"),
        "init_std": (number_or_scaled, "standard deviation of initial parameters, or scaled: by fan-in and depth"),
        "dropout": (
            float,
            "probability of dropping an element of the embedding, or of a sub-layer's output",
        ),
        "dtype": (str, "float64: the numbers of the original, bit for bit; float32: faster"),
        "init_from": (Path, "warm start: begin with the parameters, sizes and tokenizer of this model"),
        "extend_vocabulary": (None, "give characters that --init-from does not know tokens"),
    },
    "training": {
        "steps": (int, "number of optimizer steps; default: 1000, unless --epochs or --time is given"),
        "epochs": (float, "instead of --steps: number of passes over the data"),
        "time": (duration, "instead of --steps: how long to train, such as 60s, 5m or 1.5h"),
        "batch_size": (int, "documents, or windows, per step"),
        "shards": (int, "equal groups of a batch, which processes can share; see --mpi"),
        "learning_rate": (float, "highest learning rate of the run"),
        "schedule": (str, "linear or cosine, falling to 0, or constant"),
        "warmup_steps": (int, "steps in which the learning rate first rises"),
        "beta1": (float, "decay of Adam's mean of the gradients"),
        "beta2": (float, "decay of Adam's mean of their squares"),
        "eps": (float, "added to the square root of that mean"),
        "weight_decay": (float, "AdamW's weight decay"),
        "max_grad_norm": (float, "clip gradients to this norm"),
        "eval_every": (int, "steps between validations; default: about 40 validations in a run"),
        "eval_tokens": (int, "most held-out tokens to predict in a validation; default: 32,768"),
        "patience": (int, "early stopping: end after this many validations without a new lowest loss"),
    },
    "files": {
        "out": (Path, "checkpoint file: the model, and all that is needed to resume"),
        "resume": (None, "continue from --out, if it exists, bit for bit as if never interrupted"),
        "checkpoint_every": (int, "steps between checkpoints; default: one checkpoint a minute"),
        "keep_best": (None, "also keep the model with the lowest validation loss, next to --out"),
        "log": (Path, "file for metrics, one JSON object per line"),
        "log_every": (int, "steps between lines of --log; default: 10"),
    },
}
METAVARS = {int: "N", float: "X", str: "NAME", Path: "FILE", duration: "TIME", number_or_scaled: "X"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add FILE, the arguments of `prepare`, and the options of the output."""
    add_data_arguments(
        parser, "UTF-8 text; .gz is decompressed, - is standard input; default: the US first names in the package"
    )
    defaults = defaults_of(prepare)
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for name, (kind, text) in options.items():
            if kind is None:
                group.add_argument(option(name), action="store_true", help=text)
                continue
            default = defaults[name]
            if name in Recipe.__dataclass_fields__:  # --init-from asks whether it was given
                text += "" if default is None else f" (default: {default})"
                default = argparse.SUPPRESS
            group.add_argument(option(name), type=kind, default=default, metavar=METAVARS[kind], help=text)
    machine = add_machine_arguments(parser)
    machine.add_argument("--mpi", action="store_true", help="share each step among the processes of mpiexec")
    group = parser.add_argument_group("output")
    group.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help="number of documents to sample")
    group.add_argument(
        "--temperature",
        type=float,
        default=TEMPERATURE,
        metavar="X",
        help="of the samples; 0: the likeliest token",
    )
    group.add_argument("--plot", metavar="FILE", help="plot the losses to a .png, .svg or .pdf file")
    group.add_argument("--plain", action="store_true", help="print exactly what the original prints")


def option(name: str) -> str:
    """The name of an argument as an option of the command line."""
    return "--" + name.replace("_", "-")


def run(parsed: argparse.Namespace) -> None:
    """Train, and print a report, or with --plain what the original prints."""
    integer("samples", parsed.samples, 0), Sampler(parsed.temperature)  # fail before training, not after it
    if parsed.plot is not None:
        check_plot_path(parsed.plot)
    options: Any = {name: getattr(parsed, name) for group in OPTIONS.values() for name in group if name in parsed}
    options |= {"backend": parsed.backend, "threads": parsed.threads}
    data, (rank, processes) = data_of(parsed), launched()
    try:
        if parsed.mpi:
            train_with_ranks(mpi().COMM_WORLD, data, options, lambda training: train_and_report(parsed, training))
        elif processes > 1:
            raise ValueError(f"mpiexec has started {processes} processes, which would train the same model: add --mpi")
        else:
            train_and_report(parsed, prepare(data, **options))
    except Exception:
        if rank:
            raise SystemExit(USAGE) from None  # rank 0 prints why
        raise


def train_and_report(parsed: argparse.Namespace, training: Run) -> None:
    """Train, and print a report, or with --plain what the original prints; then plot."""
    if parsed.plot is not None:
        check_different({"plot": parsed.plot}, training.files)
    report = plain_report if parsed.plain else human_report
    try:
        report(parsed, training)
    except (KeyboardInterrupt, SystemExit):
        if training.saved_step == training.step:
            print(
                f"stopped after step {training.step:,}: {shown_path(parsed.out)} is saved; continue with --resume",
                file=sys.stderr,
            )
        raise
    if parsed.plot is not None:
        plot_losses(training.history, parsed.plot)


def plain_report(parsed: argparse.Namespace, run: Run) -> None:
    """Train, and print byte for byte what the original prints."""
    if run.steps is None:
        raise ValueError("plain prints the number of steps: it needs steps or epochs, not a time")
    print(f"num docs: {len(run.corpus)}")
    print(f"vocab size: {run.model.config.vocab_size}")
    print(f"num params: {run.model.num_params}", flush=True)  # or a pipe would buffer it
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
    """Train, and print the data, the model, the progress, the result and samples."""
    print_setup(parsed, run)
    begin, seconds = run.step, run.seconds
    if begin:
        print(f"resumed {shown_path(parsed.out)} after step {begin:,}")
    with live_line(run) if sys.stderr.isatty() else printed_lines(run) as watch:
        result = run.train(watch)
    print_result(run, result, run.step - begin, run.seconds - seconds)
    if parsed.out is not None:
        print_files(run, parsed.out)
    for text in run.model.generate(parsed.samples, parsed.temperature):
        print(f"        {printed(text)}")


def print_setup(parsed: argparse.Namespace, run: Run) -> None:
    """Print the data, the model and how it is evaluated."""
    config, model = run.model.config, run.model
    is_lines = run.recipe.format == "lines"
    kind = "documents" if is_lines else "characters"
    count = len(run.corpus) if is_lines else run.corpus.characters
    longer = run.corpus.count_longer(config.block_size) if is_lines else 0
    cut = f", {longer:,} of them cut to the context" if longer and run.recipe.long_documents == "cut" else ""
    dropout = f", dropout {config.dropout:g}" if config.dropout else ""
    print(f"data    {run.corpus.name}: {count:,} {kind}{cut}, {config.vocab_size} tokens")
    print(
        f"model   {model.num_params:,} parameters: n_layer {config.n_layer}, n_embd {config.n_embd}, "
        f"block_size {config.block_size}, n_head {config.n_head}{dropout}; {model.dtype}, {model.backend}"
    )
    if run.origin is not None:
        added = run.corpus.tokenizer.added if isinstance(run.corpus.tokenizer, CharTokenizer) else ""
        print(f"start   {run.origin}" + (f", vocabulary extended by {printed(added)}" if added else ""))
    if run.held_out_tokens:
        part = describe_held_out(run.validation_tokens, run.held_out_tokens)
        often = f"every {run.eval_every:,} steps" if run.eval_every is not None else f"{VALIDATIONS} times"
        print(f"eval    {often}, on {part}")


def print_result(run: Run, result: TrainingResult, steps: int, seconds: float) -> None:
    """Print the speed of these steps, and the losses."""
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


def print_files(run: Run, out: Path) -> None:
    """Print the checkpoint and the best model that were written."""
    if not run.has_saved:
        print(f"nothing to do: the run in {shown_path(out)} is complete, and the file is unchanged")
        return
    best = run.recorder.best
    and_best = f" and {shown_path(best)}" if best is not None and os.path.exists(best) else ""
    print(f"saved   {shown_path(out)}{and_best}")
