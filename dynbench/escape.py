r"""Text from outside (titles, names, paths, error messages) made harmless for a medium: one function for each.

Characters that a reader cannot see (control characters, directions of text, halves of surrogate pairs) are written as
in a Python string, `\x1b`, in every medium.
"""

from __future__ import annotations

import html as _html
import re
import unicodedata

# An underscore within a word is none, and an '&' that begins no entity stays as it is. A text may begin a line.
_MARKDOWN = re.compile(r"^(?:[#>]|[-+](?= ))|[\\`*\[\]<|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
_NOT_PLAIN = re.compile(r"[^\n\t -~]")
_ENTITIES = {"<": "&lt;", "&": "&amp;"}


def terminal(text: str) -> str:
    """For a line of plain text: what could move the cursor, change colours or begin a line is visible."""
    return text if text.isascii() and text.isprintable() else "".join(map(_visible, text))


def rich(text: str) -> str:
    """For text that `rich` prints: in addition no `[b]` is a tag."""
    from rich.markup import escape  # imported late: most commands print plain text

    return escape(terminal(text))


def xml(text: str) -> str:
    """For the value of an attribute or a text that an XML library writes, which escapes markup but lets this through.

    Line breaks and tabs are kept; of what XML 1.0 does not allow, nothing is left.
    """
    return _NOT_PLAIN.sub(lambda m: _visible(m[0]), text)


def html(text: str) -> str:
    """For text or a quoted attribute in HTML or SVG that is put together as a string."""
    return _html.escape(xml(text))


def markdown(text: str) -> str:
    """For text within a line or a table cell of GitHub's Markdown: no markup, HTML, link text or formula begins."""
    return _MARKDOWN.sub(lambda m: _ENTITIES.get(m[0], "\\" + m[0]), terminal(text))


def markdown_code(text: str) -> str:
    """A span of code in Markdown, outside of tables, that holds this text, whatever backticks there are in it."""
    text = terminal(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{text}{space}{fence}"


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] == "C" or category in ("Zl", "Zp"):
        return character.encode("unicode_escape").decode("ascii")
    return character
