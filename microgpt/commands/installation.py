"""Detection of a damaged installation.

The project `microgpt` on the package index has files of the same names as ours: installing it later overwrites them,
and uninstalling it removes them.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "microgpt-fast"
REPAIR = f"pip install --force-reinstall --no-deps {DISTRIBUTION}"


def damage() -> str | None:
    """One line that names files not as installed, and the command that repairs them; None if all are intact."""
    replaced, missing = [], []
    for file in _installed_files():
        path = Path(str(file.locate()))
        if not path.exists():
            missing.append(path)
        elif file.hash and file.hash.mode == "sha256" and _sha256(path) != file.hash.value:
            replaced.append(path)
    owners = metadata.packages_distributions().get("microgpt", [])
    other = next((owner for owner in owners if owner != DISTRIBUTION), None)
    if replaced and other:  # without another owner, the user has changed it on purpose
        what = f"{_listed(replaced)} of {DISTRIBUTION} replaced by another project, {other}"
        return f"{what}: pip uninstall {other}, then {REPAIR}"
    if missing:
        return f"{_listed(missing)} of {DISTRIBUTION} missing, as after `pip uninstall microgpt`: {REPAIR}"
    return None


def _installed_files() -> list[metadata.PackagePath]:
    """The files of the package that the installer recorded; none for a zip file or an editable installation."""
    try:
        recorded = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    return [file for file in recorded if file.parts[0] == "microgpt" and file.suffix != ".pyc"]


def _sha256(path: Path) -> str:
    return urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).decode().rstrip("=")


def _listed(paths: list[Path]) -> str:
    first, *others = map(str, paths)
    return f"{first} and {len(others)} more" if others else first
