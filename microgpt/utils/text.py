"""Text from outside, made safe to print."""

from __future__ import annotations

LAYOUT = "\n\t"
JOINERS = "\u200c\u200d"  # inside words of many scripts, and inside emoji
SPACES = "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"


def visible(text: str, layout: str = LAYOUT) -> str:
    """`text` with control characters, lone surrogates and the like escaped as in a Python string.

    Joiners and the characters of `layout`, by default line feeds and tabs, are kept.
    """
    return "".join(c if c.isprintable() or c in layout or c in JOINERS else spelled(c) for c in text)


def spelled(character: str) -> str:
    """The escape sequence of a character in a Python string."""
    return character.encode("unicode_escape").decode()


def one_line(text: object) -> str:
    """Text of a library's error, on one line of at most 200 characters."""
    return " ".join(str(text).split())[:200]
