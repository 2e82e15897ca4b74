"""Pages of the site from files outside docs/, and links that work both there and in the repository.

A hook of mkdocs. In a page, a relative link to another file of the repository leads to the page that the site has for
it, or to the file at its host. A link to nothing stays as it is, for mkdocs to complain about.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]

# Files of the repository that are at another place on the site.
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
MADE = {"examples/microgpt.ipynb": "notebook.md"}  # a page that another hook makes of a file

# A page that is served as it is, and what it loads.
PLAYGROUND = ["examples/browser", "microgpt/display/page.css", "microgpt/display/letters.js"]

# Elements that a browser would load from elsewhere.
LOADED = re.compile(r"<(?:script|img|iframe|link rel=.?(?:stylesheet|pre\w+))\b[^>]*=.?(?:https?:)?//[^>]*>")

LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")
CODE = re.compile(r"^(```+).*?^\1$|`(?:[^`\n]|\n(?!\n))+`", re.MULTILINE | re.DOTALL)


def on_files(files, config):
    for source, place in MOVED.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for source in PLAYGROUND:
        path = ROOT / source
        for file in [path] if path.is_file() else sorted(path.rglob("*.*")):
            if file.suffix not in (".pyc", ""):
                files.append(File.generated(config, file.relative_to(ROOT).as_posix(), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown, page, config, files):
    source = source_of(page.file.src_uri)
    if source is None:
        return markdown

    def led(match):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[0]))
        for place in (place_of(target), posixpath.join(target, "index.html")):
            if files.get_file_from_path(place):
                return posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        if (ROOT / target).exists():
            return f"{config.extra['host']}/{'tree' if (ROOT / target).is_dir() else 'blob'}/main/{target}"
        return match[0]

    code = [range(*block.span()) for block in CODE.finditer(markdown)]
    return LINK.sub(lambda match: match[0] if any(match.start() in part for part in code) else led(match), markdown)


def on_post_page(output, page, config):
    if loaded := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {loaded[0]}")
    return output


def source_of(place):
    """The file of the repository that a page is made from, or None if there is none."""
    moved = {place: source for source, place in MOVED.items()}
    source = moved.get(place, f"docs/{place}")
    return source if (ROOT / source).is_file() else None


def place_of(source):
    """The place of a file of the repository on the site, if it is there."""
    return (MOVED | MADE).get(source, source.removeprefix("docs/"))
