"""A page from its sections: its head, its style, what its script may do, and the files that can hold it."""

from __future__ import annotations

import base64
import hashlib
import os
from importlib import resources
from string import Template

from microgpt.utils.arguments import ending
from microgpt.utils.files import check_writable

# Nothing is loaded, and no script runs but the page's own, whatever text of others is in the page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def check_report_path(path: str | os.PathLike[str]) -> None:
    """Raise `ValueError` about a path that does not end in .html or .htm, or cannot be written."""
    ending("a report", path, ("html", "htm"))
    check_writable(path)


def document(title: str, lead: str, sections: list[str], script: str = "") -> str:
    """An HTML page that needs no other file and no network. `script` is a module of JavaScript."""
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    return Template(resource("microgpt.report", "page.html")).substitute(
        policy=f"{POLICY}; script-src 'sha256-{digest}'" if script else POLICY,
        title=title,
        style=resource("microgpt.display", "page.css"),
        lead=lead,
        sections="\n".join(sections),
        script=f'<script type="module">\n{script}</script>\n' if script else "",
    )


def section(heading: str, content: str) -> str:
    """A section of a page, under its heading."""
    name = heading.lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{heading}</h2>\n{content}</section>'


def counted(count: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def resource(package: str, name: str) -> str:
    """The text of a file that comes with the package."""
    return resources.files(package).joinpath(name).read_text("utf-8")
