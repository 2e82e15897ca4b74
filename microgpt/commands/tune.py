"""Search for the options of train that suit a text file best, and train a model with them.

examples:
  microgpt tune names.txt --steps 20000 --max-params 50000 --out names.safetensors
  microgpt tune --data cities --trials 64 --time 5m --log trials.jsonl --plot trials.svg
  microgpt tune names.txt --search n_embd=16,32,64 --search learning_rate=0.001..0.03 --batch-size 16
  microgpt tune names.txt --trials 512 --dask tcp://head:8786
  mpiexec -n 8 python -m mpi4py.futures -m microgpt tune names.txt --trials 512
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from microgpt.commands._options import add_data_arguments, data_of
from microgpt.commands._trials import COLUMNS, live_table, print_trial, rank, row
from microgpt.commands.train import METAVARS, OPTIONS, duration, option
from microgpt.display.plots import check_plot_path
from microgpt.engine.backend import BACKENDS
from microgpt.training.recipe import Recipe, defaults_of
from microgpt.tuning.plots import plot_trials
from microgpt.tuning.result import TuneResult, train_command
from microgpt.tuning.search import TuningProgress
from microgpt.tuning.space import SEARCHABLE
from microgpt.tuning.tune import tune
from microgpt.utils.arguments import shown_path
from microgpt.utils.files import check_different
from microgpt.utils.mpi import launched, mpi
from microgpt.utils.optional import require
from microgpt.utils.text import one_line

LENGTHS = ("steps", "epochs")  # options of train that make the budget
SHOWN = 10  # trials in the table at the end
CONNECTING = 10  # most seconds to connect to Dask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add FILE, the arguments of `tune`, and the options of `train` that can be given."""
    defaults = defaults_of(tune)
    add_data_arguments(parser, "as in microgpt train")
    group = parser.add_argument_group("search")
    group.add_argument("--trials", type=int, default=defaults["trials"], metavar="N", help="number of trials")
    group.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="values to try, 16,32,64 or a range such as 0.001..0.03, for an option; may be repeated: "
        + ", ".join(SEARCHABLE),
    )
    group.add_argument("--max-params", type=int, metavar="N", help="most parameters of a model")
    group.add_argument("--max-bytes", type=int, metavar="N", help="largest size of a model's parameters, in bytes")
    group = parser.add_argument_group("compute, by default that of trial 0 for 1,000 steps")
    for name in LENGTHS:
        kind, text = OPTIONS["training"][name]
        assert kind is not None
        text = text.removeprefix("instead of --steps: ").partition(";")[0]
        more = "; default: 1000" if name == "steps" else ""
        group.add_argument(option(name), type=kind, metavar=METAVARS[kind], help=text + more)
    group.add_argument(
        "--flops",
        type=float,
        metavar="X",
        help="instead of --steps: multiply-adds, 2 FLOPs each, such as 5e9",
    )
    group.add_argument(
        "--time",
        type=duration,
        metavar="TIME",
        help="instead of --steps: time of the whole search, such as 60s",
    )
    group = parser.add_argument_group("workers")
    group.add_argument("--workers", type=int, metavar="N", help="processes; default: one for each physical core")
    group.add_argument("--dask", metavar="ADDRESS", help="train on a Dask cluster, such as tcp://head:8786")
    group.add_argument("--backend", choices=BACKENDS, help="default: compiled, if it is installed")
    group = parser.add_argument_group("files")
    group.add_argument("--out", type=Path, metavar="FILE", help="checkpoint file of the best trial")
    group.add_argument("--log", type=Path, metavar="FILE", help="file for all trials, one JSON object per line")
    group.add_argument("--resume", action="store_true", help="continue the search of --log, if it exists")
    group.add_argument("--plot", metavar="FILE", help="plot all trials to a .png, .svg or .pdf file")
    for title in ("data", "model", "training"):
        group = parser.add_argument_group(f"{title}: as in microgpt train; what is given is not searched")
        for name, (kind, text) in OPTIONS[title].items():
            if name in Recipe.__dataclass_fields__ and name not in (*LENGTHS, "time"):
                assert kind is not None
                group.add_argument(
                    option(name), type=kind, default=argparse.SUPPRESS, metavar=METAVARS[kind], help=text
                )


def run(parsed: argparse.Namespace) -> None:
    """Search, show the trials, and print the best, and the command that gives it."""
    written = {name: getattr(parsed, name) for name in ("out", "log", "plot") if getattr(parsed, name) is not None}
    check_different(written, [("data", file) for file in parsed.files])
    if parsed.plot is not None:
        check_plot_path(parsed.plot)
    given = {name: value for name, value in vars(parsed).items() if name in Recipe.__dataclass_fields__}
    arguments = {name: getattr(parsed, name) for name in ("trials", "flops", "max_params", "max_bytes", "backend")}
    arguments |= {name: getattr(parsed, name) for name in ("out", "log", "resume")}
    data = data_of(parsed)
    with executor(parsed) as (pool, workers), watching(parsed) as progress:
        try:
            result = tune(
                data,
                executor=pool,
                workers=workers,
                search=searched(parsed.search),
                progress=progress,
                **arguments,
                **given,
            )
        except KeyboardInterrupt as error:
            if error.args:
                print(f"stopped: {error}", file=sys.stderr)
            raise
    print_result(parsed, result)
    if parsed.plot is not None:
        plot_trials(result.trials, parsed.plot)


def searched(given: list[str]) -> dict[str, str]:
    """The values of each --search, by option, which may be spelled as in Python or as on the command line."""
    values: dict[str, str] = {}
    for each in given:
        name, equals, text = each.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals or not text:
            raise ValueError(f"search must be NAME=VALUES, such as n_embd=16,32,64, got {each!r:.60}")
        if name in values:
            raise ValueError(f"search of {name} must be given once, got {values[name]!r:.60} and {text!r:.60}")
        values[name] = text
    return values


@contextlib.contextmanager
def executor(parsed: argparse.Namespace) -> Iterator[tuple[Executor | None, int | None]]:
    """The executor that the command line or mpiexec asks for, and its number of workers; None for our own processes."""
    size = mpi_size()
    if parsed.workers is not None and (parsed.dask is not None or size > 1):
        raise ValueError("workers is for processes on this machine: a Dask cluster, or mpiexec, has workers of its own")
    if parsed.dask is not None:
        with dask_client(parsed.dask) as client:
            yield client.get_executor(), max(1, sum(client.nthreads().values()))
    elif size > 1:
        with require("mpi4py.futures", "mpi").MPIPoolExecutor() as pool:
            yield pool, size - 1
    else:
        yield None, parsed.workers


def mpi_size() -> int:
    """Number of processes that mpiexec has started for mpi4py.futures, which runs this program in one of them; else 1.

    `ValueError` if it runs in all of them.
    """
    if "mpi4py.futures" in sys.modules:
        return int(mpi().COMM_WORLD.Get_size())
    _, processes = launched()
    if processes > 1:
        how = "python -m mpi4py.futures -m microgpt tune"
        raise ValueError(f"mpiexec has started {processes} processes, which would search for the same: run {how}")
    return 1


@contextlib.contextmanager
def dask_client(address: str) -> Iterator[Any]:
    """A client of the Dask scheduler at this address. `ValueError` if there is none."""
    distributed = require("distributed", "dask")
    try:
        client = distributed.Client(address, timeout=CONNECTING, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        wanted = "the address of a scheduler, such as tcp://head:8786"
        raise ValueError(f"dask must be {wanted}: {one_line(error)}") from None
    with client:
        yield client


@contextlib.contextmanager
def watching(parsed: argparse.Namespace) -> Iterator[Any]:
    """A callback that prints the size of the search, then a live table on a terminal, or a line for each trial."""
    with live_table() if sys.stderr.isatty() else contextlib.nullcontext() as table:
        begun = False

        def watch(progress: TuningProgress) -> None:
            nonlocal begun
            if not begun:
                begun = True
                print_search(parsed, progress)
            if table is not None:
                table(progress)
            if not sys.stdout.isatty():
                print_trial(progress)

        yield watch


def print_search(parsed: argparse.Namespace, progress: TuningProgress) -> None:
    """Print the size of the search."""
    workers = "" if progress.workers is None else f", {progress.workers} at a time"
    rungs = f"{progress.rungs} rungs" if progress.rungs > 1 else "1 rung"
    print(f"search  {len(progress.trials)} trials{workers}, {progress.flops:.4g} multiply-adds each, in {rungs}")
    if parsed.time is not None:
        print(f"        --flops {exactly(progress.flops)} in place of --time repeats it exactly")
    if not sys.stdout.isatty():
        print(COLUMNS)
    sys.stdout.flush()


def print_result(parsed: argparse.Namespace, result: TuneResult) -> None:
    """Print the best trials, the files, and the command that gives the best."""
    best, first = result.best, result.trials[0]
    if sys.stdout.isatty():
        print(COLUMNS)
        for trial in sorted(result.trials, key=rank)[:SHOWN]:
            print(row(trial, first))
    against = ""
    if first is not best and first.validation_losses:
        against = f"; trial 0 has {first.validation_loss:.4f} after {first.completed:,} of {first.steps:,}"
    print(
        f"best    trial {best.number}: validation loss {best.validation_loss:.4f} after {best.steps:,} steps{against}"
    )
    if parsed.out is not None:
        print(f"saved   {shown_path(parsed.out)}")
    print(f"repeat  {train_command(result, parsed.out)}")


def exactly(flops: int) -> str:
    """A number of multiply-adds as short as it can be typed."""
    short = f"{flops:g}"
    return short if int(float(short)) == flops else str(flops)
