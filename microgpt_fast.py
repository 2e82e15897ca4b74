"""The command `microgpt`, started from outside of the package: what Python imports by that name may be another file."""

import os
import sys
from importlib.machinery import PathFinder


def main() -> int:
    """Run the command line of the package that was installed with this file, and return its exit status."""
    if other := shadow():
        print(f"microgpt: error: {other} hides the package of this name: rename it or move it away", file=sys.stderr)
        return 2
    from microgpt.__main__ import main

    return main()


def shadow() -> str | None:
    """The file or folder that `import microgpt` would find before the package, or None."""
    found = PathFinder.find_spec("microgpt")
    if found is None:  # an editable installation, which has a finder of its own
        return None
    folders = [*map(os.path.realpath, found.submodule_search_locations or ())]
    package = os.path.join(os.path.dirname(os.path.realpath(__file__)), "microgpt")
    return None if package in folders else found.origin or folders[0]
