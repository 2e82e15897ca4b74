"""Detection of a damaged installation.

The project `microgpt` on the package index has files of the same names as ours: installing it later overwrites them,
and uninstalling it removes them.
"""

from __future__ import annotations

import csv
import hashlib
from base64 import urlsafe_b64encode
from importlib import metadata
from pathlib import Path, PurePosixPath

DISTRIBUTION = "microgpt-fast"
REPAIR = f"pip install --force-reinstall --no-deps {DISTRIBUTION}"


def damage() -> str | None:
    """One line that names files not as installed, and the command that repairs them; None if all are intact."""
    replaced, missing = [], []
    for path, recorded_hash in _installed_files():
        if not path.exists():
            missing.append(path)
        elif recorded_hash.startswith("sha256=") and recorded_hash != _sha256(path):
            replaced.append(path)
    owners = metadata.packages_distributions().get("microgpt", [])
    other = next((owner for owner in owners if owner != DISTRIBUTION), None)
    if replaced and other:  # without another owner, the user has changed it on purpose
        what = f"{_listed(replaced)} of {DISTRIBUTION} replaced by another project, {other}"
        return f"{what}: pip uninstall {other}, then {REPAIR}"
    if missing:
        return f"{_listed(missing)} of {DISTRIBUTION} missing, as after `pip uninstall microgpt`: {REPAIR}"
    return None


def _installed_files() -> list[tuple[Path, str]]:
    """The files of the package that the installer recorded, and the hash of each or ""; none for an editable one.

    `metadata.files` does not serve: from Python 3.12 on, it leaves out files that are missing.
    """
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return []
    recorded = csv.reader((distribution.read_text("RECORD") or "").splitlines())  # a zip file has none
    paths = [(PurePosixPath(name), recorded_hash) for name, recorded_hash, _ in recorded]
    return [
        (Path(str(distribution.locate_file(path))), recorded_hash)
        for path, recorded_hash in paths
        if path.parts[0] == "microgpt" and path.suffix != ".pyc"
    ]


def _sha256(path: Path) -> str:
    """The hash of a file's content, as RECORD has it."""
    return "sha256=" + urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).decode().rstrip("=")


def _listed(paths: list[Path]) -> str:
    first, *others = map(str, paths)
    return f"{first} and {len(others)} more" if others else first
