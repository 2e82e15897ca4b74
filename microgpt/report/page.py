"""A self-contained page about a model: its training, its samples, and what happens inside."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt.display.curves import losses_svg
from microgpt.display.html import escaped, facts_table
from microgpt.display.labels import token_labels
from microgpt.display.summary import describe_model, describe_training
from microgpt.inspection import forward, softmax
from microgpt.model import GPT, SEED, tokens_of
from microgpt.report.document import check_report_path, counted, document, section
from microgpt.report.figures import attention_axes, attention_legend, attention_map, attention_map_width, token_plane
from microgpt.report.play import joined, play_section, why_not_playable
from microgpt.report.projection import principal_components
from microgpt.report.samples import describe_samples, list_samples
from microgpt.sampling import SAMPLES, TEMPERATURE
from microgpt.utils.arguments import integer
from microgpt.utils.files import write_atomically

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Limits that keep a page readable, and below a few megabytes, for any model.
POSITIONS = 64  # of the text
CANDIDATES = 5  # for the next token
MAPS = 144  # of attention
LABELS = 300  # tokens labelled in the plane
POINTS = 5000  # tokens in the plane
LISTED_TOKENS = 100  # of the vocabulary


def write_report(
    model: GPT,
    path: str | os.PathLike[str],
    *,
    text: str | None = None,
    samples: int = SAMPLES,
    seed: Any = SEED,
    play: bool = True,
) -> None:
    """Write an HTML page about `model`, on which it can be tried, and which needs no other file and no network.

    Args:
        model: the model.
        path: the file, which ends in .html or .htm, and is written as a whole or not at all.
        text: the text whose predictions and attention are shown, up to the context or 64 tokens; by default the first
            sample that is not empty.
        samples: number of documents to draw at temperature 0.5; from a model of continuous text, 500 tokens are drawn,
            or none if it is 0.
        seed: random seed of the samples: the same model and seed give the same page.
        play: whether the page holds the parameters, and JavaScript that runs the model; it can have at most 2 million.

    `ValueError` names a path that cannot be written, or a character of `text` that the model does not know.
    """
    check_report_path(path)
    write_atomically(path, report_page(model, text=text, samples=samples, seed=seed, play=play).encode())


def report_page(
    model: GPT, *, text: str | None = None, samples: int = SAMPLES, seed: Any = SEED, play: bool = True
) -> str:
    """The page that `write_report` writes."""
    model.check_finite("report")
    count = integer("samples", samples, 0)
    tokens = _first_sample(model, count, seed) if text is None else _tokens(model, text)
    tokens = [model.bos, *tokens] if model.reads_bos or not tokens else tokens
    read = tokens[: min(model.config.block_size, POSITIONS)]
    labels = token_labels(model, read)
    activations = forward(model, read)
    sections = [
        section("Model", _facts(model)),
        section("Losses", _losses(model)),
        section("Samples", f"<p>{describe_samples(model, count, seed)}.</p>\n{list_samples(model, count, seed)}"),
        section("Next token", _probabilities(model, tokens, labels, softmax(activations.logits))),
        section("Attention", _attention(labels, activations.attention)),
        section("Embedding", _embedding(model)),
    ]
    why_not = why_not_playable(model)
    if play and why_not:
        sections.append(section("Play", f"<p>{why_not}</p>\n"))
    elif play:
        sections.insert(0, section("Play", play_section(model)))
    return document(
        title="A GPT of microgpt",
        lead=f"{model.num_params:,} parameters in {counted(model.config.n_layer, 'layer')}, "
        f"{counted(model.config.n_head, 'head')} each, over {counted(model.config.vocab_size, 'token')}.",
        sections=sections,
        script=joined() if play and not why_not else "",
    )


def _tokens(model: GPT, text: str) -> list[int]:
    if model.tokenizer is None:
        raise ValueError("text needs a model with a tokenizer")
    return tokens_of(model.tokenizer, "text", text)


def _first_sample(model: GPT, count: int, seed: Any) -> list[int]:
    """The first of `count` documents that is not empty, or else an empty one."""
    (first,) = model.generate_tokens(1, TEMPERATURE, seed)  # the same as of more
    return first or next(filter(None, model.generate_tokens(count, TEMPERATURE, seed)), first)


def _facts(model: GPT) -> str:
    facts = describe_model(model)
    training = describe_training(model)
    if model.tokenizer:
        listed = token_labels(model, range(min(LISTED_TOKENS, model.config.vocab_size)))
        facts["tokens"] = " ".join(listed) + (" …" if model.config.vocab_size > LISTED_TOKENS else "")
    tables = facts_table("Shape", facts) + (facts_table("Training", training) if training else "")
    return f'<div class="facts">\n{tables}</div>\n'


def _losses(model: GPT) -> str:
    if model.history is None:
        return "<p>The model has no record of its training.</p>\n"
    guessing = math.log(model.config.vocab_size)
    return (
        "<p>The loss of each step’s documents, before the model learnt from them. Guessing blindly "
        f"among {counted(model.config.vocab_size, 'token')} costs {guessing:.2f} nats.</p>\n"
        f'<figure class="losses">\n{losses_svg(model.history, guessing=guessing)}</figure>\n'
    )


def _probabilities(model: GPT, tokens: list[int], labels: list[str], probabilities: NDArray[np.float64]) -> str:
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :CANDIDATES]
    following = tokens[1 : len(labels) + 1]
    rows = []
    for position, label in enumerate(labels):
        came = following[position] if position < len(following) else None
        candidates = likeliest[position].tolist()
        cells = [_candidate(model, token, probabilities[position, token], token == came) for token in candidates]
        cells.append("<td></td>" if came is None else _candidate(model, came, probabilities[position, came], True))
        rows.append(
            f'<tr><th scope="row"><span class="position">{position}</span><bdi>{escaped(label)}</bdi></th>'
            f"{''.join(cells)}</tr>\n"
        )
    losses = [-math.log(max(probabilities[i, token], 1e-300)) for i, token in enumerate(following)]
    mean = f" Its mean loss here is <strong>{sum(losses) / len(losses):.2f} nats</strong>." if losses else ""
    return (
        "<p>For each token of the text, from top to bottom, the tokens that the model expects next, likeliest first. "
        f"The token that came next is outlined.{mean}</p>\n"
        f'{_cut(model, tokens, labels)}<figure class="scroll" tabindex="0">\n'
        '<table class="probabilities" aria-label="The likeliest next tokens">\n<thead><tr>'
        f'<th scope="col">after</th><th scope="colgroup" colspan="{likeliest.shape[1]}">likeliest next</th>'
        f'<th scope="col">came next</th></tr></thead>\n<tbody>\n{"".join(rows)}</tbody>\n</table>\n</figure>\n'
    )


def _cut(model: GPT, tokens: list[int], labels: list[str]) -> str:
    if len(tokens) <= len(labels):
        return ""
    bos = ", BOS included" if model.reads_bos else ""
    return f"<p>The text has {len(tokens):,} tokens{bos}; the first {len(labels)} are shown.</p>\n"


def _candidate(model: GPT, token: int, probability: float, came: bool) -> str:
    share = f"{100 * probability:.1f}%"
    return (
        f'<td><div class="candidate{" came" if came else ""}" style="--share: {share}">'
        f"<bdi>{escaped(token_labels(model, [token])[0])}</bdi><span>{share}</span></div></td>"
    )


def _attention(labels: list[str], attention: NDArray[np.float64]) -> str:
    n_layer, n_head = attention.shape[:2]
    heads = min(n_head, MAPS)
    layers = min(n_layer, MAPS // heads)
    shown = f" {heads} of {n_head} heads in {layers} of {n_layer} layers are shown."
    maps = "".join(
        f'<h3>Layer {layer}</h3>\n<div class="heads" style="--map-width: {attention_map_width(labels):.2f}rem">\n'
        + "".join(
            f"<figure>{attention_map(labels, attention[layer, head], f'Attention of head {head} in layer {layer}')}"
            f"<figcaption>head {head}</figcaption></figure>\n"
            for head in range(heads)
        )
        + "</div>\n"
        for layer in range(layers)
    )
    return (
        "<p>Each row is a position of the text, and shows how much the head attends from it to the positions in the "
        f"columns: the weights of a row add up to 1.{shown if heads * layers < n_head * n_layer else ''}</p>\n"
        f"{attention_legend()}{attention_axes(labels)}{maps}"
    )


def _embedding(model: GPT) -> str:
    points, shares = principal_components(model.state_dict()["wte"][:POINTS])
    labels = token_labels(model, range(min(LABELS, len(points))))
    unlabelled = f" The first {len(labels)} tokens are labelled." if len(points) > LABELS else ""
    return (
        "<p>The embedding of a token is a point in a space with as many dimensions as the model is wide. Here the "
        "points are projected onto the plane in which they differ most (principal components): "
        f"{100 * shares[0]:.0f}% of the variance lies along the horizontal axis, "
        f"{100 * shares[1]:.0f}% along the vertical.{unlabelled}</p>\n"
        f'<figure class="embedding">{token_plane(labels, points)}</figure>\n'
    )
