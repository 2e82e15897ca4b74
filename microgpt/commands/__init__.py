"""The commands of the command line, one module each: `add_arguments` says what it takes, `run` does it.

The first line of a module's docstring is what `microgpt --help` says about it, the rest what its own help says below
the options.
"""
