"""The part of the page to play with: the parameters of the model, and the JavaScript that runs it in the page."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt.data.tokenizer import ByteTokenizer, CharTokenizer
from microgpt.display.labels import token_labels
from microgpt.report.document import resource
from microgpt.sampling import TEMPERATURE

if TYPE_CHECKING:
    from microgpt.model import GPT

MOST_PARAMETERS = 2_000_000  # 11 MB in base64, and a few milliseconds a token
SEED = 1  # of the first document that is drawn
MODULES = (  # each imports only from those before it
    ("microgpt.display", "letters.js"),
    ("microgpt.report", "gpt.js"),
    ("microgpt.report", "sampling.js"),
    ("microgpt.report", "tokenizer.js"),
    ("microgpt.report", "play.js"),
)
IMPORT = re.compile(r"^import \{[^}]*\} from .*\n", re.MULTILINE)
EXPORT = re.compile(r"^export ", re.MULTILINE)
TYPE = "Type a beginning, and see what it expects next; draw what follows, and watch its attention."
CANNOT_TYPE = "It cannot split text into the model’s tokens, so there is no beginning to type."


def why_not_playable(model: GPT) -> str | None:
    """The reason why a page cannot run this model, or None."""
    if model.num_params > MOST_PARAMETERS:
        return (
            f"The page does not run the model, because it has {model.num_params:,} parameters; "
            f"models of at most {MOST_PARAMETERS:,} can be played with here."
        )
    if not np.isfinite(_parameters(model)).all():
        return "The page does not run the model, because some of its parameters are beyond the largest float32."
    return None


def play_section(model: GPT) -> str:
    """The controls, and everything that the script needs to know about `model`."""
    tokenizer = _tokenizer(model)

    def part(name: str) -> str:
        return resource("microgpt.report", f"{name}-{model.format}.html") if tokenizer else ""

    return Template(resource("microgpt.report", "play.html")).substitute(
        what=TYPE if tokenizer else CANNOT_TYPE,
        beginning=part("beginning"),
        temperature=f"{TEMPERATURE:g}",
        seed=SEED,
        written=part("written"),
        model=as_script(
            {
                "config": asdict(model.config),
                "shapes": model.config.parameter_shapes(),
                "bos": model.bos,
                "reads_bos": model.reads_bos,
                "format": model.format,
                "labels": token_labels(model, range(model.config.vocab_size)),
                "tokenizer": tokenizer,
                "parameters": base64.b64encode(_parameters(model).tobytes()).decode(),
            }
        ),
    )


def joined(modules: Iterable[tuple[str, str]] = MODULES) -> str:
    """Modules of JavaScript as one, for a page without a server: it could not import them from files."""
    return "\n".join(EXPORT.sub("", IMPORT.sub("", resource(*module))) for module in modules)


def as_script(content: Any) -> str:
    """JSON that can stand in a <script> element, whatever is in it: nothing in it ends the element, or is invisible."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c").replace("\x7f", "\\u007f")


def _parameters(model: GPT) -> np.ndarray[Any, np.dtype[np.float32]]:
    with np.errstate(over="ignore"):
        return np.concatenate([matrix.astype("<f4").ravel() for matrix in model.state_dict().values()])


def _tokenizer(model: GPT) -> dict[str, Any] | None:
    """The description that `makeTokenizer` of tokenizer.js takes; None for a tokenizer that it does not know."""
    tokenizer = model.tokenizer
    if type(tokenizer) is CharTokenizer:
        return {"type": "characters", "texts": [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]}
    return {"type": "bytes"} if type(tokenizer) is ByteTokenizer else None
