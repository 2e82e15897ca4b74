"""Everything in one call: documents in, a trained model out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, Unpack

from microgpt.data.batches import Batches, DocumentBatches, TextBatches
from microgpt.data.corpus import Corpus, read_corpus
from microgpt.data.documents import Data
from microgpt.data.tokenizer import UnknownCharacterError
from microgpt.engine import backend as backends
from microgpt.model import GPT
from microgpt.training.recipe import Recipe, RecipeOptions, with_arguments_of
from microgpt.training.recorder import Recorder
from microgpt.training.run import OnProgress, Run, TrainingResult
from microgpt.training.warm_start import InitFrom, start_of
from microgpt.utils.arguments import positive_integer
from microgpt.utils.files import check_different

Result = TypeVar("Result")


@with_arguments_of(Recipe)
def prepare(
    data: Data | Corpus = None,
    *,
    init_from: InitFrom | None = None,
    extend_vocabulary: bool = False,
    eval_every: int | None = None,
    patience: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    keep_best: bool = False,
    log: str | os.PathLike[str] | None = None,
    log_every: int | None = None,
    backend: str | None = None,
    threads: int | None = None,
    **options: Unpack[RecipeOptions],
) -> Run:
    """A run that is ready to train: its arguments are checked, the data read, the model's parameters drawn.

    `prepare(...).train()` is `train(...)`, where the arguments are described. A run can be trained in parts, with the
    same bits, and its model used between them: `run.train(until=100)`.
    """
    for name in options:
        if name not in Recipe.__dataclass_fields__:
            raise TypeError(f"train() got an unexpected option {name!r}")
    resumed = out if resume and out is not None and os.path.exists(out) else None
    start = None if init_from is None else start_of(init_from, backend, resumed)
    recipe = Recipe(**(options if start is None else start.options(options)))
    if extend_vocabulary:
        if start is None:
            raise ValueError("extend_vocabulary needs init_from, the model with the vocabulary")
        start.check_extensible()
    if not recipe.val_fraction:
        needed = "validation losses: val_fraction must be more than 0"
        refuse(needed, eval_every=eval_every, patience=patience, keep_best=keep_best or None)
    if out is None:
        refuse("out, the file of the checkpoint", resume=resume or None, checkpoint_every=checkpoint_every)
    eval_every = None if eval_every is None else positive_integer("eval_every", eval_every)
    patience = None if patience is None else positive_integer("patience", patience)
    checkpoint_every = None if checkpoint_every is None else positive_integer("checkpoint_every", checkpoint_every)
    recorder = Recorder(out, keep_best, log, log_every)
    generator = backends.new_generator(backends.choose(backend), recipe.seed)
    try:
        corpus = read_corpus(data, recipe.format, recipe.tokenizer, extend_vocabulary=extend_vocabulary)
    except UnknownCharacterError as error:
        if start is None:
            raise
        raise ValueError(f"{error}: extend_vocabulary gives it a token") from None
    others = [] if init_from is None or isinstance(init_from, GPT) else [("init_from", init_from)]
    check_different(recorder.files, [*corpus.files, *others])
    order = generator.permutation(len(corpus)) if recipe.format == "lines" else None
    config = recipe.config(corpus.tokenizer.vocab_size)
    # The model copies the generator after the permutation, so that parameters are drawn next, as in microgpt.
    model = GPT(config, generator, recipe.dtype, backend, threads, corpus.tokenizer, recipe.format)
    if start is not None:  # all were drawn, so that those of new tokens, and samples, are as in any run
        start.copy_into(model)
    batches: Batches
    if order is not None:
        batches = DocumentBatches(corpus, order, config.block_size + 1, recipe.val_fraction, recipe.long_documents)
    else:
        batches = TextBatches(corpus, config.block_size + 1, model.generator, recipe.val_fraction)
    run = Run(
        recipe,
        model,
        corpus,
        batches,
        recipe.optimizer(model),
        recorder,
        eval_every=eval_every,
        patience=patience,
        checkpoint_every=checkpoint_every,
        origin=None if start is None else start.origin,
    )
    if resumed is not None:
        run.resume(resumed)
    return run


def refuse(needed: str, **options: object) -> None:
    """`ValueError` if one of these options is given: it would do nothing without what it needs."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} needs {needed}")


class TrainOptions(RecipeOptions, total=False):
    """The `**options` of `train`, for type checkers and editors: the arguments of `prepare`."""

    init_from: InitFrom | None
    extend_vocabulary: bool
    eval_every: int | None
    patience: int | None
    out: str | os.PathLike[str] | None
    resume: bool
    checkpoint_every: int | None
    keep_best: bool
    log: str | os.PathLike[str] | None
    log_every: int | None
    backend: str | None
    threads: int | None


@with_arguments_of(prepare)
def train(
    data: Data = None,
    *,
    progress: OnProgress | None = None,
    communicator: Any = None,
    **options: Unpack[TrainOptions],
) -> TrainingResult:
    """Train a model on documents, by default exactly as microgpt does.

    Args:
        data: the path of a text file, a list of `pathlib.Path`s, or a list of documents as strings; "-" is standard
            input, and files that end in .gz are decompressed. By default the US first names in the package;
            `load_dataset` has further data. A list of lines from `readlines` gives the same as the file.
        progress: called now and then, and after each validation, with a `TrainingProgress`.
        communicator: a communicator of mpi4py, such as `MPI.COMM_WORLD`, whose processes share each step; all of them
            make this call, with the same arguments, and get the same result. At most `shards` processes can share a
            step. Only rank 0 reads the data, calls `progress` and writes files.
        init_from: warm start: a model's file, or a `GPT`, from whose parameters and tokenizer a new run begins. Sizes,
            `format` and `init_std` are the model's, and so are by default `dtype` and `dropout`.
        extend_vocabulary: give characters that the tokenizer of `init_from` does not know tokens, after all others,
            with parameters drawn as in a new model. Without it, they are an error.
        eval_every: steps between validations, which compute the loss of the held-out data. By default there are about
            40 in a run: at round numbers of steps, or with `time`, at regular times.
        patience: early stopping: end after this many validations without a new lowest loss; None: never. Only
            validations at multiples of `eval_every` count.
        out: the checkpoint file, written during training and at its end.
        resume: continue from `out`, bit for bit as if never interrupted; start a new run if it does not exist.
        checkpoint_every: steps between checkpoints; by default there is one a minute.
        keep_best: also keep the model with the lowest validation loss, next to `out`, with ".best" in its name.
        log: a file of metrics, one JSON object per line: one for every `log_every` steps, by default 10, one for the
            steps left at the end, and one for each validation.
        backend: see `GPT`.
        threads: see `GPT`.
        options: the options that determine the result, see `Recipe`.

    `ValueError` or `TypeError` names the argument, file or line that is wrong, or the step at which the loss or the
    parameters stopped being finite. Source: the training loop of microgpt.
    """
    if communicator is None:
        return prepare(data, **options).train(progress)
    return train_with_ranks(communicator, data, options, lambda run: run.train(progress))


def train_with_ranks(
    communicator: Any, data: Data, options: TrainOptions, lead: Callable[[Run], Result]
) -> Result | TrainingResult:
    """Train with all processes of a communicator, which all make this call.

    Returns on rank 0 what `lead` makes of the run, and on the others the result of following it.
    """
    from microgpt.training.distributed import join  # rarely needed

    data = list(data) if isinstance(data, Iterator) else data  # it is read twice
    ranks = join(communicator, data, options)
    options["threads"] = ranks.threads(options)
    if ranks.rank:
        return ranks.follow(options.get("backend"), options["threads"])
    with ranks.leading(lambda: prepare(data, **options)) as run:
        return lead(run)
