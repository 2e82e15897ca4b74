"""Facts about a model and its training, for tables and commands."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microgpt.history import TrainingHistory
    from microgpt.model import GPT


def describe_model(model: GPT) -> dict[str, str]:
    """The sizes of a model, its dtype, backend and tokenizer, under their names in the API."""
    return {
        "parameters": f"{model.num_params:,}",
        **{name: _shown(value) for name, value in asdict(model.config).items()},
        "dtype": model.dtype,
        "backend": model.backend,
        "format": model.format,
        "tokenizer": type(model.tokenizer).__name__ if model.tokenizer else "none",
    }


def _shown(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def describe_held_out(validation_tokens: int, held_out_tokens: int) -> str:
    """The part of the held-out data that a validation predicts, in words."""
    if validation_tokens < held_out_tokens:
        return f"{validation_tokens:,} of the {held_out_tokens:,} held-out tokens"
    return f"all {held_out_tokens:,} held-out tokens"


def describe_training(model: GPT) -> dict[str, str]:
    """The length of a model's training, its last losses in nats, and the options of `train`.

    Options that `describe_model` shows are left out: the model may have changed since. Empty without a history.
    """
    history = model.history
    if history is None:
        return {}
    steps = len(history.losses)
    facts = {} if history.init_from is None else {"init_from": str(history.init_from)}
    if history.fingerprint is not None:
        facts["data"] = f"fingerprint {history.fingerprint[:8]}"
    facts |= {"steps": f"{steps:,}", "seconds": f"{history.seconds:.3g}"}
    if steps:
        last = history.losses[-100:]
        facts["training loss"] = f"{last.mean():.4f} nats, mean of the last {len(last)} steps"
    if history.validation_losses:
        step, loss = history.validation_losses[-1]
        part = describe_held_out(history.validation_tokens, history.held_out_tokens)
        facts["validation loss"] = f"{loss:.4f} nats, after {step:,} steps, on {part}"
    shown = describe_model(model) | facts
    return facts | {name: value for name, value in describe_options(history).items() if name not in shown}


def describe_options(history: TrainingHistory) -> dict[str, str]:
    """The options of `train`, without those that are None."""
    return {name: str(value) for name, value in history.options.items() if value is not None}
