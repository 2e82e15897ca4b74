"""The data sets that come with the package, in presets/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from microgpt.utils.arguments import shown

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


@dataclass(frozen=True, repr=False)
class Dataset(Sequence[str]):
    """Documents that come with the package, from `load_dataset`: a sequence of strings, which cannot be changed.

    A slice is a list, as is `list(dataset)`, which can be.

    Attributes:
        documents: the documents.
        name: the name by which `load_dataset` finds them, and under which reports show them.
        title: what they are.
        source: where they come from.
        license: the licence under which anyone may use them.
    """

    documents: tuple[str, ...]
    name: str
    title: str
    source: str
    license: str

    def __len__(self) -> int:
        return len(self.documents)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return list(self.documents[index]) if isinstance(index, slice) else self.documents[index]

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self):,} documents)"


def dataset_names() -> list[str]:
    """The names of the data sets that come with the package."""
    return list(_manifest())


def load_dataset(name: str) -> Dataset:
    """A data set that comes with the package, such as "elements". `ValueError` lists the names that there are."""
    return dataset_of("name", name)


def dataset_of(argument: str, name: object) -> Dataset:
    """The data set with this name; errors name the argument that has it."""
    manifest = _manifest()
    if not isinstance(name, str) or name not in manifest:
        raise ValueError(f"{argument} must be one of {', '.join(manifest)}, got {shown(name)}")
    file = _folder() / (f"presets/{name}.txt" if name != "names" else "names.txt")
    return Dataset(tuple(file.read_text("utf-8").splitlines()), name, **manifest[name])


def packaged_name(data: object) -> str | None:
    """The name with which `load_dataset` gives these data, if it does; else None."""
    if isinstance(data, Dataset) and data.name in dataset_names() and data == load_dataset(data.name):
        return data.name
    return None


def _manifest() -> dict[str, dict[str, str]]:
    import tomllib  # slow to import, as is `importlib.resources`

    return tomllib.loads((_folder() / "presets/manifest.toml").read_text("utf-8"))


def _folder() -> Traversable:
    """The folder of the files, which may be inside of a zip file."""
    from importlib import resources

    return resources.files("microgpt.data")
