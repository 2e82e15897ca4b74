"""The commands of the command line, one module each: `add_arguments` declares the arguments, `run` runs the command.

The first line of a module's docstring is its description in `microgpt --help`; the rest follows the options in the
command's own help.
"""
