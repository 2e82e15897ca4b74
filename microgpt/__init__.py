"""microgpt: the 200-line GPT as a package, with its bits and ten thousand times its speed.

The public names are those of `api.py`, imported when the first of them is asked for. `python -m microgpt` imports this
file before the command line can turn an error or Ctrl-C into one line: nothing here fails, or takes time.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # importing `typing` for it would take longer than all of this file
if TYPE_CHECKING:
    from microgpt.api import *  # noqa: F403
    from microgpt.api import __all__ as __all__
else:

    def __getattr__(name):
        from importlib import import_module
        from importlib.util import find_spec

        if name == "__all__" or not (name.startswith("_") or find_spec(f"microgpt.{name}")):
            api = import_module("microgpt.api")
            globals().update({public: getattr(api, public) for public in ("__all__", *api.__all__)})
        if name not in globals():
            raise AttributeError(f"module 'microgpt' has no attribute {name!r}")
        return globals()[name]

    def __dir__():
        return sorted({*globals(), *__getattr__("__all__")})
