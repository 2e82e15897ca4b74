"""Pages that show what the package does, made by running it: the gallery of reports, and the notebook.

A hook of mkdocs. A command or a cell that fails stops the build.
"""

import re
import shlex
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import nbformat
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from nbclient import NotebookClient

from microgpt import backend_info

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "microgpt.ipynb"
TEXT = "docs.txt"  # all pages of docs/, one after the other

TRAINING = [
    "microgpt train --steps 1000 --val-fraction 0.1 --out original.safetensors",
    "microgpt train --steps 3000 --val-fraction 0.1 --batch-size 16 --out longer.safetensors",
    "microgpt train --steps 3000 --val-fraction 0.1 --batch-size 16 --n-embd 32 --out wider.safetensors",
    f"microgpt train {TEXT} --format text --val-fraction 0.1 --dtype float32 --steps 600 --learning-rate 0.003"
    " --n-layer 2 --n-embd 64 --block-size 64 --batch-size 12 --init-std scaled --out docs.safetensors",
]
REPORTS = {  # title: the command, which writes a page into gallery/
    "Names": "microgpt report wider.safetensors --out names.html",
    "These pages": "microgpt report docs.safetensors --out docs.html --text 'the same bits'",
    "Three runs": "microgpt report original.safetensors longer.safetensors wider.safetensors --out runs.html",
}

PLAYGROUND = """\
## The playground

[A page](examples/browser/index.html) that trains a model in the browser. Unlike all others here, it loads something
from elsewhere: [Pyodide](https://pyodide.org), which is Python for browsers, and the package.
"""


def on_files(files, config):
    for place, content in made().items():
        files.append(File.generated(config, place, content=content))
    return files


@cache
def made():
    """The pages by their places on the site."""
    if backend_info().backend != "compiled":
        raise PluginError("the gallery needs the compiled engine: MICROGPT_REQUIRE_EXTENSIONS=1 pip install .")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / TEXT).write_text("\n".join(page.read_text("utf-8") for page in sorted((ROOT / "docs").glob("*.md"))))
        for command in [*TRAINING, *REPORTS.values()]:
            run(command, folder)
        pages = {f"gallery/{page.name}": page.read_bytes() for page in folder.glob("*.html")}
        return {"gallery.md": gallery(), **pages, "notebook.md": notebook(folder)}


def run(command, folder):
    arguments = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PluginError(f"{command}: {done.stderr.strip()}")


def gallery():
    parts = [
        "---\nhide: [toc]\n---\n# Gallery\n\nPages that `microgpt report` has written, each a single file, from models"
        " that were trained when this site was built:\n\n```sh\n" + "\n".join(map(wrapped, TRAINING)) + "\n```\n"
    ]
    for title, command in REPORTS.items():
        page = f"gallery/{command.split('--out ')[1].split()[0]}"
        parts.append(
            f"## {title}\n\n```sh\n{wrapped(command)}\n```\n\n[The whole page]({page})\n\n"
            f'<iframe class="report" src="{page}" title="{title}" loading="lazy"></iframe>\n'
        )
    parts.append(PLAYGROUND)
    return "\n".join(parts)


def wrapped(command):
    """A command on several lines, if it is long."""
    lines = [""]
    for word in command.split(" "):
        if len(f"{lines[-1]} {word}") > 100 and word.startswith("--"):
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return "\n".join(lines)


def notebook(folder):
    """The notebook as Markdown, with the results of all cells."""
    content = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        content,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    ).execute()
    parts = []
    for cell in content.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts += [f"```python\n{cell.source}\n```", *map(shown, cell.outputs)]
    return "\n\n".join(parts) + "\n"


def shown(output):
    """A result of a cell as Markdown, in the richest form that it has."""
    data = {"text/plain": output.text} if output.output_type == "stream" else output.data
    for kind in ("text/html", "image/svg+xml"):
        if kind in data:
            content = re.sub(r"\n\s*\n", "\n", data[kind].strip())  # an empty line would end the HTML in Markdown
            return f'<div class="output">\n{content}\n</div>'
    return f"```text\n{data['text/plain'].rstrip()}\n```"
