"""Makes matplotlib's SVG fit into a page: colours follow the reader's light or dark setting, ids are unique."""

from __future__ import annotations

import re
from html import escape

from dynbench.report.palette import PAPER, TONES

_FONT = "var(--font, system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif)"


def inline(svg: str, key: str, alt: str) -> str:
    """An `<svg>` element for an HTML page that defines the variables of `variables()`.

    Args:
        svg: as matplotlib wrote it, in the colours of the light page.
        key: unique in the page, for ids.
        alt: what it shows, for who cannot see it.
    """
    body = svg[svg.index("<svg") :].strip()
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', body))
    body = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(|href=")#([\w.-]+)', rf"\1#{key}-\2", body)
    body = re.sub(r"(font: (?:[\w.]+ )*?[\d.]+px )[^;\"]*", lambda m: m[1] + _FONT, body)
    body = re.sub(r"font-family: [^;\"]*", f"font-family: {_FONT}", body)
    by_light = {tone.light: name for name, tone in TONES.items()}
    body = re.sub(
        r"#[0-9a-f]{6}\b", lambda m: f"var(--{by_light[m[0]]}, {m[0]})" if m[0] in by_light else m[0], body
    )  # fmt: skip
    view = re.search(r'viewBox="[^"]*"', body)
    assert view is not None
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {view[0]} role="img" aria-label="{escape(alt)}">'
    return re.sub(r"<svg[^>]*>", lambda _: head, body, count=1)


def standalone(svg: str, key: str, alt: str) -> str:
    """An SVG file that brings its own paper, light or dark as the reader's system is."""
    body = inline(svg, key, alt)
    paper = f'<rect width="100%" height="100%" style="fill: var(--{PAPER})"/>'
    head = f"<title>{escape(alt)}</title><style>{variables(':root')}</style>{paper}"
    at = body.index(">") + 1
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body[:at]}{head}{body[at:]}\n'


def variables(selector: str) -> str:
    """CSS that gives every colour of the palette its name, light and dark."""
    light = " ".join(f"--{name}: {tone.light};" for name, tone in TONES.items())
    dark = " ".join(f"--{name}: {tone.dark};" for name, tone in TONES.items())
    return f"{selector} {{ {light} }}\n@media (prefers-color-scheme: dark) {{ {selector} {{ {dark} }} }}"
