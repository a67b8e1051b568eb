"""Hostile text in every medium."""

from __future__ import annotations

import html as html_library
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from dynbench.escape import html, markdown, markdown_code, rich, terminal, xml

HOSTILE = [
    "\x1b[31mred\x1b]0;title\x07",
    "a\r\nb\x00\x7f\x85\x9b",
    "right to left \u202egnp.exe",
    "lone \ud800 half",
    "[/b] [bold]x[/bold] \\[b] [link=https://x]y[/link]",
    "</title><script>alert(1)</script> & \"quoted\" 'text'",
    "| a | `b` **c** _d_ ~e~ [f](javascript:g) ![h](i) $j$ &lt;k&gt; <!-- ",
    "\ufffe\uffff",
]
any_text = st.text(st.characters(), max_size=40)  # with surrogates and control characters


@pytest.mark.parametrize("name", ["ResNet-20 (batch 32)", "skipnet38_digits, compaction", "Größe: 10 %; 中文"])
def test_an_ordinary_name_stays_as_it_is_in_every_medium(name: str) -> None:
    assert {f(name) for f in (terminal, rich, xml, html, markdown)} == {name}
    assert markdown_code(name) == f"`{name}`"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_one_printable_line(text: str) -> None:
    shown = terminal(text)
    assert shown.isprintable() and shown.encode()
    assert terminal(shown) == shown
    for escaped in (rich(text), markdown(text), markdown_code(text)):
        assert escaped.isprintable()


def test_what_cannot_be_seen_is_shown_as_in_python() -> None:
    assert terminal("a\x1b[1mb\n\u202e\ud800") == r"a\x1b[1mb\n\u202e\ud800"


@given(any_text)
def test_rich_prints_the_text_without_a_style(text: str) -> None:
    printed = Text.from_markup(rich(text))
    assert printed.plain == terminal(text) and printed.spans == []


@given(any_text)
def test_xml_and_html_can_be_parsed_and_hold_the_text(text: str) -> None:
    element = ElementTree.Element("a", b=xml(text))
    element.text = xml(text)
    parsed = ElementTree.fromstring(ElementTree.tostring(element, encoding="unicode"))
    assert (parsed.text or "") == xml(text) and parsed.get("b") == xml(text)
    by_hand = ElementTree.fromstring(f'<a b="{html(text)}">{html(text)}</a>')
    assert (by_hand.text or "") == xml(text)
    assert html_library.unescape(html(text)) == xml(text)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("<img src=x>", "&lt;img src=x>"),
        ("[a](b)", r"\[a\](b)"),
        ("`c` *d* ~e~ $f$", r"\`c\` \*d\* \~e\~ \$f\$"),
        ("_d_ a_b __init__", r"\_d\_ a_b \_\_init\_\_"),
        ("&lt; & b", "&amp;lt; & b"),
        ("two\nlines", r"two\\nlines"),
    ],
)
def test_no_markdown_begins(text: str, escaped: str) -> None:
    assert markdown(text) == escaped


def test_a_span_of_code_holds_backticks() -> None:
    assert markdown_code("a``b`") == "``` a``b` ```"
