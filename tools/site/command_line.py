"""The page about the command line, written from its parser. A hook of mkdocs."""

import argparse
import re

from mkdocs.structure.files import File

from microgpt.commands.cli import COMMANDS, build_parser

PAGE = "command-line.md"


def on_files(files, config):
    files.append(File.generated(config, PAGE, content=page()))
    return files


def page():
    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert tuple(commands.choices) == COMMANDS
    summaries = {choice.dest: choice.help for choice in commands._choices_actions}
    rows = [f"| [`microgpt {name}`](#microgpt-{name}) | {text(summaries[name])} |" for name in commands.choices]
    parts = [
        "# Command line\n\nWhat `microgpt COMMAND --help` says. `python -m microgpt` is the same as `microgpt`. Options"
        " may be spelled with `_` for `-`.\n\n| command | |\n|---|---|\n" + "\n".join(rows) + "\n"
    ]
    parts += [section(name, command) for name, command in commands.choices.items()]
    return "\n".join(parts)


def section(name, command):
    """The help of a command: usage, its arguments by group, examples."""
    usage = command._get_formatter()
    usage.add_usage(None, command._get_positional_actions(), [], prefix="")
    line = usage.format_help().strip().replace(f"microgpt {name}", f"microgpt {name} [OPTION ...]")
    parts = [f"## microgpt {name}\n\n{text(command.description)}\n\n```text\n{line}\n```\n"]
    for group in command._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if actions:
            rows = [f"| {spelling(action)} | {explanation(command, action)} |" for action in actions]
            parts.append(f"| {group.title.removeprefix('positional ')} | |\n|---|---|\n" + "\n".join(rows) + "\n")
    if command.epilog:
        examples = re.sub("(?m)^  ", "", command.epilog.strip().removeprefix("examples:\n"))
        parts.append(f"**Examples**\n\n```sh\n{examples}\n```\n")
    return "\n".join(parts)


def spelling(action):
    """An option and its value, or the name of a positional argument."""
    value = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper())
    if not action.option_strings:
        return f"`{value}`"
    shown = value if action.nargs != 0 else ""
    return ", ".join(f"`{f'{option} {shown}'.strip()}`" for option in action.option_strings)


def explanation(command, action):
    return text(command._get_formatter()._expand_help(action)) if action.help else ""


def text(content):
    """Plain text as Markdown in a cell of a table."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(content.split()))
