"""Formulas between dollars as MathML, made when the site is built: the browser draws it, nothing is loaded."""

from __future__ import annotations

import html as entities
import re
from typing import Any

from latex2mathml.converter import convert

BLOCK = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)


def drawn(formula: str, display: str) -> str:
    """One formula; a command that is not known is an error, since it would be shown as text."""
    made: str = convert(entities.unescape(formula).strip(), display=display)
    if unknown := re.findall(r"\\[a-zA-Z]+", made):
        raise ValueError(f"{unknown[0]} is not understood in the formula {formula.strip()!r}")
    return made


def on_page_content(html: str, **rest: Any) -> str:
    """Replace what arithmatex has marked."""
    html = BLOCK.sub(lambda found: f'<div class="formula" tabindex="0">{drawn(found[1], "block")}</div>', html)
    return INLINE.sub(lambda found: drawn(found[1], "inline"), html)
