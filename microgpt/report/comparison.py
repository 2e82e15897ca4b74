"""A self-contained page that compares models: their losses, what differs in their training, and their samples."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microgpt.display.curves import RUN_COLOURS, comparison_svg
from microgpt.display.html import escaped
from microgpt.display.summary import describe_held_out, describe_model, describe_options
from microgpt.history import TrainingHistory, lowest_validation_loss
from microgpt.model import SEED
from microgpt.report.document import check_report_path, counted, document, section
from microgpt.report.samples import describe_samples, list_samples
from microgpt.sampling import SAMPLES
from microgpt.utils.arguments import integer
from microgpt.utils.files import write_atomically

if TYPE_CHECKING:
    from microgpt.model import GPT

TRAINING_LOSS = "training loss"
VALIDATION_LOSSES = ("validation loss", "lowest validation loss")
LAST = 100  # steps of the training loss
NONE = "none"  # where a run has no such option or loss


def write_comparison(
    models: Mapping[str, GPT], path: str | os.PathLike[str], *, samples: int = SAMPLES, seed: Any = SEED
) -> None:
    """Write an HTML page that compares 2 to 8 models by their names: their losses, options and samples.

    Args:
        models: models with a history, all of the same format, by name.
        path: the file, which ends in .html or .htm, and is written as a whole or not at all.
        samples: number of documents that each draws at temperature 0.5; models of continuous text draw 500
            tokens, or none if it is 0.
        seed: random seed of the samples, the same for all.

    `ValueError` names a path that cannot be written, or a model that cannot be compared.
    """
    check_report_path(path)
    write_atomically(path, comparison_page(models, samples=samples, seed=seed).encode())


def comparison_page(models: Mapping[str, GPT], *, samples: int = SAMPLES, seed: Any = SEED) -> str:
    """The page that `write_comparison` writes."""
    histories = _histories(models)
    count = integer("samples", samples, 0)
    sections = [
        section("Losses", _losses(models, histories)),
        section("Differences", _differences(models, histories)),
        section("Samples", _samples(models, count, seed)),
    ]
    names = ", ".join(map(escaped, models))
    return document(f"{len(models)} GPTs of microgpt", f"{names}.", sections)


def _histories(models: Mapping[str, GPT]) -> dict[str, TrainingHistory]:
    """The histories of models that can be compared. `ValueError` names one that cannot."""
    if not 2 <= len(models) <= len(RUN_COLOURS):
        raise ValueError(f"models must be 2 to {len(RUN_COLOURS)}, got {len(models)}")
    first, *others = models
    for name in others:
        if models[name].format != models[first].format:
            formats = f"{models[first].format!r} of {first} and {models[name].format!r} of {name}"
            raise ValueError(f"models must have the same format, got {formats}")
    histories = {}
    for name, model in models.items():
        model.check_finite("report")
        if model.history is None:
            raise ValueError(f"{name} must have a record of its training, but it was saved without one")
        histories[name] = model.history
    return histories


def _losses(models: Mapping[str, GPT], histories: Mapping[str, TrainingHistory]) -> str:
    training = "the training loss, averaged over a twentieth of the run."
    has_validation = any(history.validation_losses for history in histories.values())
    words = f"Strong lines: the validation loss. Thin lines: {training}" if has_validation else f"Lines: {training}"
    guessing = None
    if _have_same_tokens(models):
        vocab_size = next(iter(models.values())).config.vocab_size
        guessing = math.log(vocab_size)
        words += f" Guessing blindly among {counted(vocab_size, 'token')} costs {guessing:.2f} nats."
    else:
        words += " The models have different tokens, so their losses cannot be compared with each other."
    keys = "".join(f"<li>{_key(name, colour)}</li>" for name, colour in zip(histories, RUN_COLOURS))
    return (
        f'<p>{words}</p>\n<ul class="legend" aria-label="Runs">{keys}</ul>\n'
        f'<figure class="losses">\n{comparison_svg(histories, guessing=guessing)}</figure>\n'
    )


def _have_same_tokens(models: Mapping[str, GPT]) -> bool:
    first, *others = [(model.config.vocab_size, model.tokenizer) for model in models.values()]
    return all(other == first for other in others)


def _key(name: str, colour: str) -> str:
    return f'<span class="run" style="--colour: {colour}">{escaped(name)}</span>'


def _differences(models: Mapping[str, GPT], histories: Mapping[str, TrainingHistory]) -> str:
    outcomes = [_outcome(history) for history in histories.values()]
    results = {name: [outcome[name] for outcome in outcomes] for name in outcomes[0]}
    described = [_options(model, histories[name]) for name, model in models.items()]
    names = [name for name in dict.fromkeys(name for each in described for name in each) if name not in results]
    options = {name: [each.get(name, NONE) for each in described] for name in names}
    rows = [_row(name, values) for name, values in options.items() if len(set(values)) > 1]
    marked, words = _marked(models, histories)
    for name, values in results.items():
        if name != "validated on" or len(set(values)) > 1:
            rows.append(_row(name, values, _lowest(values) if name in marked else NONE))
    heads = "".join(f'<th scope="col">{_key(name, colour)}</th>' for name, colour in zip(models, RUN_COLOURS))
    return (
        "<p>The options and sizes in which the models differ, and the outcome. Losses are in nats; the training loss "
        f"is the mean of the last {LAST} steps. {words}</p>\n"
        '<figure class="scroll" tabindex="0">\n<table class="comparison" aria-label="Differences">\n'
        f"<thead><tr><td></td>{heads}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>\n</figure>\n"
    )


def _marked(models: Mapping[str, GPT], histories: Mapping[str, TrainingHistory]) -> tuple[list[str], str]:
    """The losses that mean the same for all models, whose lowest is marked; and what the page says about marks."""
    if not _have_same_tokens(models):
        return [], "No loss is marked, because the models have different tokens."
    validated = [history for history in histories.values() if history.validation_losses]
    if len({history.held_out_tokens for history in validated}) > 1:
        reason = "the runs hold out different numbers of tokens: their data differ, or are divided differently"
        return [], f"No loss is marked, because {reason}."
    fingerprints = {history.fingerprint for history in histories.values()}
    if len(fingerprints - {None}) > 1:
        return [], "No loss is marked, because the runs had different data."
    marked, reasons = [], []
    if len({model.config.dropout for model in models.values()}) == 1:
        marked.append(TRAINING_LOSS)
    else:
        reasons.append("The training loss is not marked, because the runs differ in dropout, which raises it.")
    if len({history.validation_tokens for history in validated}) <= 1:
        marked += VALIDATION_LOSSES
    else:
        reasons.append("Validation losses are not marked, because they are of different parts of the held-out tokens.")
    if marked and None in fingerprints:
        reasons.insert(0, "The lowest is bold, which means something only if all runs had the same data.")
    elif marked:
        reasons.insert(0, "The lowest is bold.")
    return marked, " ".join(reasons)


def _options(model: GPT, history: TrainingHistory) -> dict[str, str]:
    origin = {} if history.init_from is None else {"init_from": str(history.init_from)}
    data = {} if history.fingerprint is None else {"data": history.fingerprint[:8]}
    return origin | data | describe_options(history) | describe_model(model)


def _lowest(losses: list[str]) -> str:
    """The lowest of at least two losses; NaN counts as highest."""
    known = [loss for loss in losses if loss != NONE]
    return min((loss for loss in known if loss != "nan"), key=float, default=NONE) if len(known) > 1 else NONE


def _row(name: str, values: list[str], lowest: str = NONE) -> str:
    cells = "".join(
        f"<td><strong>{escaped(value)}</strong></td>" if value == lowest != NONE else f"<td>{escaped(value)}</td>"
        for value in values
    )
    return f'<tr><th scope="row">{escaped(name)}</th>{cells}</tr>\n'


def _outcome(history: TrainingHistory) -> dict[str, str]:
    """The result of a run: its length, and its losses in nats."""
    losses, validations = history.losses, history.validation_losses
    outcome = {
        "steps": f"{len(losses):,}",
        "seconds": f"{history.seconds:.3g}",
        **dict.fromkeys((TRAINING_LOSS, *VALIDATION_LOSSES, "after step", "validated on"), NONE),
    }
    if len(losses):
        outcome[TRAINING_LOSS] = f"{losses[-LAST:].mean():.4f}"
    if validations:
        step, lowest = lowest_validation_loss(validations)
        outcome |= {
            "validation loss": f"{validations[-1][1]:.4f}",
            "lowest validation loss": f"{lowest:.4f}",
            "after step": f"{step:,}",
            "validated on": describe_held_out(history.validation_tokens, history.held_out_tokens),
        }
    return outcome


def _samples(models: Mapping[str, GPT], count: int, seed: Any) -> str:
    columns = "".join(
        f"<div>\n<h3>{escaped(name)}</h3>\n{list_samples(model, count, seed)}</div>\n" for name, model in models.items()
    )
    words = describe_samples(next(iter(models.values())), count, seed)
    return f'<p>{words}, by each model.</p>\n<div class="side-by-side">\n{columns}</div>\n'
