"""Pieces of HTML, with all data escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from microgpt.utils.text import visible


def escaped(content: str) -> str:
    """`content` as text of a page or of a quoted attribute: no markup, and nothing that UTF-8 cannot encode."""
    return escape(visible(content))


def facts_table(caption: str, facts: Mapping[str, str]) -> str:
    """A table with a row for each fact: its name and its value."""
    rows = "".join(
        f'<tr><th scope="row" style="text-align: left">{escaped(name)}</th>'
        f'<td style="text-align: left">{escaped(fact)}</td></tr>\n'
        for name, fact in facts.items()
    )
    return f"<table>\n<caption>{escaped(caption)}</caption>\n<tbody>\n{rows}</tbody>\n</table>\n"
