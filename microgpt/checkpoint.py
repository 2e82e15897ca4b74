"""Models and runs in safetensors files, whose format is described in docs/file-format.md.

Every file is treated as hostile: everything is checked before it is used, and whatever is wrong raises a `ValueError`
of one line that names the file.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from microgpt.config import DTYPES, GPTConfig
from microgpt.data.documents import FORMATS
from microgpt.data.tokenizer import Tokenizer
from microgpt.engine.arrays import not_finite
from microgpt.history import Origin, TrainingHistory
from microgpt.utils.arguments import choice, file_name, integer, number, shown, shown_path
from microgpt.utils.files import errors_named, to_json, write_atomically
from microgpt.utils.text import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.model import GPT
    from microgpt.optimizer import Adam

T = TypeVar("T")

FORMAT = "microgpt"
VERSION = 3
# Fields of GPTConfig that files of earlier versions lack, with the values that they imply.
NEW_FIELDS: dict[str, dict[str, Any]] = {
    "1": {"activation": "relu", "init_std": 0.08, "dropout": 0.0},
    "2": {"dropout": 0.0},
}
LOSSES, MEAN, MEAN_SQUARE = "history.losses", "optimizer.m.", "optimizer.v."


@dataclass(frozen=True)
class Progress:
    """The progress of a run, from which it can be resumed.

    Attributes:
        m, v: the moments of the optimizer, by parameter name.
        step: number of steps completed.
    """

    m: dict[str, NDArray[Any]]
    v: dict[str, NDArray[Any]]
    step: int


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file, validated.

    Attributes:
        config, tokenizer, dtype, format: those of the model; the tokenizer and the format may be None.
        parameters: arrays by name, with the shapes of `config`.
        generator: the state of the model's generator, in the form of `random.Random.getstate`.
        history: how the model was trained, or None.
        progress: the progress of a run that can be resumed, or None.
    """

    config: GPTConfig
    tokenizer: Tokenizer | None
    dtype: str
    format: str | None
    parameters: dict[str, NDArray[Any]]
    generator: tuple[Any, ...]
    history: TrainingHistory | None
    progress: Progress | None


def save(path: str | os.PathLike[str], model: GPT, optimizer: Adam | None = None) -> None:
    """Write a model and its history. With an optimizer, a run can resume from the file.

    The file is complete, or as it was before. `ValueError` if it cannot be written, or if parameters are not finite.
    """
    from safetensors.numpy import save as serialize

    model.check_finite("save")
    arrays = dict(model.state_dict())
    metadata: dict[str, Any] = {
        "config": asdict(model.config),
        "dtype": model.dtype,
        "text_format": model.format,
        "generator": model.generator.getstate(),
        "tokenizer": model.tokenizer.to_json() if model.tokenizer else None,
    }
    if model.history is not None:
        arrays[LOSSES] = model.history.losses
        metadata["history"] = {
            "options": plain(model.history.options),
            "seconds": model.history.seconds,
            "validation_losses": model.history.validation_losses,
            "validation_tokens": model.history.validation_tokens,
            "held_out_tokens": model.history.held_out_tokens,
            "fingerprint": model.history.fingerprint,
        }
        if model.history.init_from is not None:
            metadata["history"]["init_from"] = asdict(model.history.init_from)
    if optimizer is not None:
        for prefix, moments in ((MEAN, optimizer.m), (MEAN_SQUARE, optimizer.v)):
            arrays |= {prefix + name: array for name, array in model.by_name(moments).items()}
        metadata["progress"] = {"step": optimizer.step_count}
    texts = {name: to_json(value) for name, value in metadata.items()}
    texts |= {"format": FORMAT, "format_version": str(VERSION)}
    texts["checksum"] = _checksum(arrays, texts)
    write_atomically(path, serialize(arrays, texts))


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and validate a file; `ValueError` says in one line what is wrong with it."""
    path = file_name("path", path)
    name = shown_path(path)
    arrays, texts = _read_file(path)
    try:
        return _interpret(arrays, texts)
    except RecursionError:
        raise ValueError(f"{name}: its metadata is nested too deeply") from None
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        what = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{name}: {one_line(what)}") from None


def _read_file(path: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    name = shown_path(path)
    with errors_named("read", path):
        if os.path.isdir(path):
            raise IsADirectoryError(0, "Is a directory")
        open(path, "rb").close()  # whatever is wrong, the library reports a missing file
        try:
            with safe_open(path, framework="numpy") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{name} is damaged, or not a safetensors file: {one_line(error)}") from None
        except (ValueError, TypeError, AttributeError, KeyError) as error:  # element types that NumPy lacks
            raise ValueError(f"{name} is damaged, or not a model: {one_line(repr(error))}") from None


def _interpret(arrays: dict[str, NDArray[Any]], texts: dict[str, str]) -> Checkpoint:
    if texts.get("format") != FORMAT:
        raise ValueError("not a model of microgpt: its metadata must say format 'microgpt'")
    version = texts["format_version"]
    if version not in (*NEW_FIELDS, str(VERSION)):
        raise ValueError(f"format version {version} is unknown: this microgpt reads versions 1 to {VERSION}")
    checksum = texts.pop("checksum")
    if checksum != _checksum(arrays, texts):
        raise ValueError("damaged: the checksum does not match the content")
    metadata = {key: json.loads(text) for key, text in texts.items() if key not in ("format", "format_version")}

    fields = NEW_FIELDS.get(version, {}) | _typed("config", metadata["config"], dict)
    if fields.keys() != GPTConfig.__dataclass_fields__.keys():
        raise ValueError(f"config must have {', '.join(GPTConfig.__dataclass_fields__)}, got {', '.join(fields)}")
    config = GPTConfig(**fields)
    if config.n_layer > len(arrays):  # checked before the layers are listed
        raise ValueError(f"config has n_layer {config.n_layer}, but there are only {len(arrays)} arrays")
    dtype = choice("dtype", metadata["dtype"], DTYPES)

    def matrices(prefix: str) -> dict[str, NDArray[Any]]:
        shapes = config.parameter_shapes()
        return {name: _checked(arrays, prefix + name, dtype, shape) for name, shape in shapes.items()}

    parameters, history, progress = matrices(""), None, None
    if names := not_finite(parameters):
        raise ValueError(f"not all parameters in {names} are finite numbers: training has diverged")
    if "history" in metadata:
        stored = _typed("history", metadata["history"], dict)
        losses = _checked(arrays, LOSSES, "float64", (arrays[LOSSES].size,))
        pairs = [
            (integer("validation_losses", step, 0), math.nan if loss is None else float(loss))
            for step, loss in _typed("validation_losses", stored["validation_losses"], list)
        ]
        counts = {name: integer(name, stored.get(name, 0), 0) for name in ("validation_tokens", "held_out_tokens")}
        options = NEW_FIELDS.get(version, {}) | _typed("options", stored["options"], dict)
        init_from = _origin(stored["init_from"]) if "init_from" in stored else None
        # Files before version 3 have the fingerprint in `progress`.
        holder = stored if version == str(VERSION) else _typed("progress", metadata.get("progress", {}), dict)
        fingerprint = None if holder.get("fingerprint") is None else _hash("fingerprint", holder["fingerprint"])
        history = TrainingHistory(
            losses, pairs, options, float(stored["seconds"]), **counts, init_from=init_from, fingerprint=fingerprint
        )
    if "progress" in metadata:
        stored = _typed("progress", metadata["progress"], dict)
        progress = Progress(matrices(MEAN), matrices(MEAN_SQUARE), integer("step", stored["step"], 0))
        if history is None or len(history.losses) != progress.step:
            raise ValueError(f"progress is {progress.step} steps, but the history does not have as many losses")
    known = len(parameters) * (3 if progress else 1) + (history is not None)
    if len(arrays) != known:
        raise ValueError(f"there must be {known} arrays, got {len(arrays)}")
    tokenizer = None if metadata["tokenizer"] is None else Tokenizer.from_json(metadata["tokenizer"])
    config.check_tokenizer(tokenizer)
    format = metadata.get("text_format", history.options.get("format") if history else None)
    if format is not None:
        format = choice("text_format", format, FORMATS)
    state = _generator_state(metadata["generator"])
    return Checkpoint(config, tokenizer, dtype, format, parameters, state, history, progress)


def _origin(value: Any) -> Origin:
    stored = _typed("init_from", value, dict)
    file = None if stored["file"] is None else shown_path(_typed("init_from", stored["file"], str))
    return Origin(file, _hash("parameters of init_from", stored["parameters"]))


def _hash(name: str, value: Any) -> str:
    if not re.fullmatch("[0-9a-f]{32}", _typed(name, value, str)):
        raise ValueError(f"{name} must be a hash of 32 hexadecimal digits, got {shown(value)}")
    return str(value)


def _generator_state(value: Any) -> tuple[Any, ...]:
    """A result of `random.Random.getstate`, from JSON."""
    version, words, next_gauss = _typed("generator", value, list)
    if version != random.Random.VERSION:
        raise ValueError(f"generator must be of version {random.Random.VERSION}, got {shown(version)}")
    if next_gauss is not None:
        next_gauss = number("generator", next_gauss)
    words = tuple(integer("generator", word, 0, 2**32 - 1) for word in _typed("generator", words, list))
    state = (version, words, next_gauss)
    random.Random(0).setstate(state)  # raises an error if their number is wrong
    return state


def _checked(arrays: Mapping[str, NDArray[Any]], name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    array = arrays[name]
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} must be {dtype} of shape {shape}, got {array.dtype} {array.shape}")
    return array


def _typed(name: str, value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {shown(value)}")
    return value


def parameters_hash(parameters: Mapping[str, NDArray[Any]]) -> str:
    """A hash of arrays by name, 32 hexadecimal digits; it depends on their dtype."""
    return _checksum(parameters, {})


def _checksum(arrays: Mapping[str, NDArray[Any]], texts: Mapping[str, str]) -> str:
    """A hash of everything in a file: safetensors itself would not detect a wrong bit in an array."""
    import hashlib  # slow to import, used only for files

    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(texts):
        digest.update(f"{name}={len(texts[name])}={texts[name]}".encode())
    for name in sorted(arrays):
        digest.update(f"{name}={arrays[name].dtype.str}={arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for JSON: anything but a number, a string or None becomes its repr."""
    scalars = (bool, int, float, str, type(None))
    return {name: value if isinstance(value, scalars) else repr(value) for name, value in options.items()}
