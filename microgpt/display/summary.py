"""A model and its training in a few words: what tables and commands say about them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microgpt.model import GPT


def describe_model(model: GPT) -> dict[str, str]:
    """The sizes of a model, how it computes and its tokenizer, each under its name in the API."""
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
    """How much of the held-out data a validation predicts."""
    if validation_tokens < held_out_tokens:
        return f"{validation_tokens:,} of the {held_out_tokens:,} held-out tokens"
    return f"all {held_out_tokens:,} held-out tokens"


def describe_training(model: GPT) -> dict[str, str]:
    """How long a model was trained, where its losses (in nats) ended, and what `train` was told.

    Of that, nothing is said that `describe_model` says: the model may have changed since. Empty without a history.
    """
    history = model.history
    if history is None:
        return {}
    steps = len(history.losses)
    facts = {"steps": f"{steps:,}", "seconds": f"{history.seconds:.3g}"}
    if steps:
        last = history.losses[-100:]
        facts["training loss"] = f"{last.mean():.4f} nats, mean of the last {len(last)} steps"
    if history.validation_losses:
        step, loss = history.validation_losses[-1]
        part = describe_held_out(history.validation_tokens, history.held_out_tokens)
        facts["validation loss"] = f"{loss:.4f} nats, after {step:,} steps, on {part}"
    said = describe_model(model) | facts
    told = {name: str(value) for name, value in history.options.items() if value is not None}
    return facts | {name: value for name, value in told.items() if name not in said}
