"""Warm start: a run that begins with the parameters and the tokenizer of another model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from microgpt.checkpoint import parameters_hash, read
from microgpt.config import GPTConfig
from microgpt.data.huggingface import HuggingFaceTokenizer
from microgpt.data.tokenizer import CharTokenizer, Tokenizer
from microgpt.history import Origin
from microgpt.model import GPT, copy_parameters, from_checkpoint
from microgpt.training.recipe import Recipe
from microgpt.utils.arguments import file_name, shown, shown_path

InitFrom = str | os.PathLike[str] | GPT


@dataclass(frozen=True)
class Start:
    """The model that a run begins with.

    Attributes:
        name: its file, or "init_from" for a model in memory; for errors.
        model: the model; for a run that is resumed, the one in its checkpoint, which has the same sizes.
        origin: what the run is to remember of the model that it began with.
    """

    name: str
    model: GPT
    origin: Origin | None

    def __post_init__(self) -> None:
        self.model.check_finite("init_from")
        if self.model.tokenizer is None:
            raise ValueError(f"init_from must be a model with a tokenizer, but {self.name} has none")

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a recipe: those given, and the model's. `ValueError` names one that contradicts the model."""
        sizes = [name for name in GPTConfig.__dataclass_fields__ if name in Recipe.__dataclass_fields__]
        sizes.remove("dropout")  # which parameters do not depend on
        asked_for = replace(self.model.config, **{name: given[name] for name in sizes if name in given})
        own = {name: getattr(self.model.config, name) for name in sizes} | {"format": self.model.format}
        for name, value in own.items():
            asked = given.get(name, value) if name == "format" else getattr(asked_for, name)
            if asked != value:
                raise ValueError(f"{name} must be left out or {value!r}, as in {self.name}, got {shown(asked)}")
        if "tokenizer" in given and not _is_of(given["tokenizer"], self.model.tokenizer):
            raise ValueError(
                f"tokenizer must be left out or that of {self.name}, {shown(self.model.tokenizer)},"
                f" got {shown(given['tokenizer'])}"
            )
        return {
            "dtype": self.model.dtype,
            "dropout": self.model.config.dropout,
            **given,
            **own,
            "tokenizer": self.model.tokenizer,
        }

    def check_extensible(self) -> None:
        """Raise `ValueError` if no tokens can be added to the tokenizer."""
        if type(self.model.tokenizer) is not CharTokenizer:  # those derived from it may encode in other ways
            kind = type(self.model.tokenizer).__name__
            raise ValueError(f"extend_vocabulary is for tokens that are characters, but {self.name} has a {kind}")

    def copy_into(self, model: GPT) -> None:
        """Copy the parameters into a model. Rows of tokens that are new in its vocabulary stay as they are."""
        drawn = model.state_dict()
        parameters = dict(self.model.state_dict())
        for name, matrix in parameters.items():
            if len(drawn[name]) > len(matrix):
                parameters[name] = np.concatenate([matrix, drawn[name][len(matrix) :]])
        copy_parameters(model, parameters)


def start_of(init_from: InitFrom, backend: str | None, resumed: str | os.PathLike[str] | None) -> Start:
    """The model that a run begins with; `resumed` is the checkpoint of a run that began with it, or None.

    A run that is resumed has its parameters in its checkpoint, and does not need those that it began with: their file
    need not exist any more. If it does, it must be the same.

    `TypeError` or `ValueError` if it is no model, as for `microgpt.load`.
    """
    if not isinstance(init_from, (str, os.PathLike, GPT)):
        raise TypeError(f"init_from must be the name of a model's file, or a GPT, got {shown(init_from)}")
    if resumed is None:
        return _start(init_from, backend)
    content = read(resumed)
    begun = content.history.init_from if content.history else None
    is_gone = not isinstance(init_from, GPT) and not os.path.exists(file_name("init_from", init_from))
    origin = begun if begun and is_gone else _start(init_from, backend).origin
    return Start(shown_path(resumed), from_checkpoint(content, backend=backend), origin)


def _start(init_from: InitFrom, backend: str | None) -> Start:
    if isinstance(init_from, GPT):
        return Start("init_from", init_from, Origin(None, parameters_hash(init_from.state_dict())))
    name = shown_path(file_name("init_from", init_from))
    content = read(init_from)
    return Start(name, from_checkpoint(content, backend=backend), Origin(name, parameters_hash(content.parameters)))


def _is_of(asked_for: Any, tokenizer: Tokenizer | None) -> bool:
    """Whether the option `tokenizer` means this tokenizer."""
    assert tokenizer is not None
    if isinstance(asked_for, Tokenizer):
        return tokenizer == asked_for
    content = tokenizer.to_json()
    if isinstance(tokenizer, HuggingFaceTokenizer) and isinstance(asked_for, (str, os.PathLike)):
        return bool(HuggingFaceTokenizer.from_file(asked_for).to_json()["json"] == content["json"])
    return isinstance(asked_for, str) and asked_for == content["type"]
