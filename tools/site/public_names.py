"""The API reference: a table of all public names, links to them, and the check that none is missing.

A hook of mkdocs. mkdocstrings takes the entries from the docstrings; pages in docs/api/ say which stands where.
"""

import inspect
import re

from mkdocs.exceptions import PluginError

import microgpt

PLACE = "<!-- the public names -->"
CODE = re.compile(r"<code>(?:microgpt\.)?((\w+)(?:\.\w+)?)(?:\(\))?</code>(?!</a>)")


def on_page_markdown(markdown, page, config, files):
    if PLACE not in markdown:
        return markdown
    rows = []
    for name in microgpt.__all__:
        summary = (inspect.getdoc(getattr(microgpt, name)) or "").partition("\n")[0]
        rows.append(f"| [`{name}`][microgpt.{name}] | {summary} |")
    return markdown.replace(PLACE, "| name | |\n|---|---|\n" + "\n".join(rows))


def on_page_content(html, page, config, files):
    """Let each public name in code lead to its entry; in guides only those that are no common words."""
    in_reference = page.file.src_uri.startswith("api/")

    def linked(match):
        path, name = match.groups()
        if name not in microgpt.__all__ or not (in_reference or "_" in name or not name.islower()):
            return match[0]
        return f'<autoref identifier="microgpt.{path}" optional>{match[0]}</autoref>'

    return CODE.sub(linked, html)


def on_env(env, config, files):
    """Raise if a public name, or a public method or property of one, has no entry or no docstring."""
    entries = config.plugins["mkdocstrings"].handlers.inventory
    missing = [min(names) for names in wanted() if names.isdisjoint(entries)]
    missing += [f"microgpt.{name}" for name in microgpt.__all__ if not inspect.getdoc(getattr(microgpt, name))]
    if missing:
        raise PluginError(f"no entry in docs/api/, or no docstring: {', '.join(missing)}")


def wanted():
    """For each name that must have an entry, those under which it may be: a member may have that of a base class."""
    for name in microgpt.__all__:
        yield {f"microgpt.{name}"}
        thing = getattr(microgpt, name)
        bases = inspect.getmro(thing) if inspect.isclass(thing) else ()
        classes = [each for each in bases if each.__module__.startswith("microgpt.")]
        members = {member: value for each in reversed(classes) for member, value in vars(each).items()}
        for member, value in members.items():
            if not member.startswith("_") and (callable(value) or isinstance(value, (property, classmethod))):
                yield {f"microgpt.{each.__name__}.{member}" for each in classes}
