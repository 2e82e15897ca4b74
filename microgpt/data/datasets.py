"""The data sets that come with the package, in presets/."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from microgpt.utils.arguments import shown

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


class Dataset(list[str]):
    """Documents that come with the package: a list of strings.

    Attributes:
        name: the name by which `load_dataset` finds them, and under which reports show them.
        title: what they are.
        source: where they come from.
        license: the licence under which anyone may use them.
    """

    def __init__(self, documents: Iterable[str], name: str, title: str, source: str, license: str) -> None:
        super().__init__(documents)
        self.name, self.title, self.source, self.license = name, title, source, license


def dataset_names() -> list[str]:
    """The names of the data sets that come with the package."""
    return list(_manifest())


def load_dataset(name: str) -> Dataset:
    """A data set that comes with the package, such as "elements". `ValueError` lists the names that there are."""
    manifest = _manifest()
    if not isinstance(name, str) or name not in manifest:
        raise ValueError(f"data must be one of {', '.join(manifest)}, got {shown(name)}")
    file = _folder() / (f"presets/{name}.txt" if name != "names" else "names.txt")
    return Dataset(file.read_text("utf-8").splitlines(), name, **manifest[name])


def _manifest() -> dict[str, dict[str, str]]:
    import tomllib  # slow to import, as is `importlib.resources`

    return tomllib.loads((_folder() / "presets/manifest.toml").read_text("utf-8"))


def _folder() -> Traversable:
    """The folder of the files, which may be inside of a zip file."""
    from importlib import resources

    return resources.files("microgpt.data")
