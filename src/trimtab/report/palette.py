"""Colours, dashes and markers: one look per name on every page, in a light and a dark theme.

Every series colour stands at 3:1 or more against its background and every text colour at 4.5:1 (WCAG 2.1 AA); a test
computes both. Colours are never the only mark: each method has a dash and a marker of its own as well.

Figures name colours by tokens that the page's script replaces with the theme's: `@ink`, `@grid`, `@s2` (third series),
`@s2/0.2` (the same at 20 % opacity).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

THEMES: dict[str, dict[str, Any]] = {
    "light": {
        "paper": "#ffffff", "panel": "#f4f6f9", "ink": "#1f2430", "muted": "#535c6b", "grid": "#dfe3ea", "rule": "#c4cad4",
        "link": "#005a9c", "good": "#006b4f", "bad": "#a63a06",
        "series": ["#1f2430", "#0067b1", "#d2560f", "#00906b", "#7b1fe0", "#6b3410", "#c2308a", "#5f7383",
                   "#ea3e69", "#8c3b21", "#a07c12", "#495a15", "#319410", "#176129", "#109272", "#175d63",
                   "#148bb3", "#2a4cb2", "#8b69ee", "#7829b1", "#cc3be9", "#902287", "#e8329c", "#992e24"],
    },
    "dark": {
        "paper": "#14171d", "panel": "#1d2129", "ink": "#f2f4f8", "muted": "#a9b2c0", "grid": "#2d333e", "rule": "#475062",
        "link": "#7fc1ff", "good": "#4fd6aa", "bad": "#ffa870",
        "series": ["#f2f4f8", "#5db0f5", "#ff9a5c", "#2fb58c", "#8d84ff", "#c98a5c", "#ef5fc0", "#8ea4b5",
                   "#e65277", "#f0aa93", "#a68218", "#9eca1d", "#379a16", "#1fd74d", "#169978", "#20cedd",
                   "#1b92ba", "#a7baf2", "#9173eb", "#d5aaf3", "#cd4fe6", "#f19fea", "#e54aa4", "#f2a8a1"],
    },
}  # fmt: skip
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "6px,2px", "2px,6px")
MARKERS = (
    "circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "pentagon",
    "circle-open", "square-open", "diamond-open", "triangle-up-open", "hexagon", "star-open", "triangle-left", "cross",
)  # fmt: skip


FIRST = {
    name: place
    for place, names in enumerate((
        ("sgd", "full", "majority", "easy"), ("var", "fp16", "model", "medium"), ("sam", "e4m3", "text only", "hard"),
        ("cram+", "e5m2", "text with box numbers"), ("var+sam", "e2m1", "blank"), ("var+cram+", "int4"), ("l1", "int8"),
        ("adamw", "bf16"),
    ))
    for name in names
}  # fmt: skip
"""Names that stand on most pages have the colours that are easiest to tell apart; no two of one kind share a place."""
SALT = 23486
"""Of the hash of all other names; with it neighbours (a format's variants, values of one setting) get distant colours."""


SCALE = [
    [place / 9, colour]
    for place, colour in enumerate((
        "#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725",
    ))
]  # fmt: skip
"""Of maps, Viridis: even steps of lightness, readable without colour vision, on light and dark paper."""


def lightness(colour: str) -> float:
    """Relative luminance of a colour (WCAG 2.1).

    Example:
        >>> lightness("#000000"), round(lightness("#ffffff"), 6)
        (0.0, 1.0)
    """
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast of two colours (WCAG 2.1), from 1 to 21.

    Example:
        >>> round(contrast("#000000", "#ffffff"), 6)
        21.0
    """
    low, high = sorted((lightness(one), lightness(other)))
    return (high + 0.05) / (low + 0.05)


def on_scale(share: float) -> str:
    """The colour of a map at a place of its scale, as it is drawn: in straight lines between the ten.

    Example:
        >>> on_scale(0.0), on_scale(1.0), on_scale(0.5)
        ('#440154', '#fde725', '#22908c')
    """
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    first = min(int(place), len(SCALE) - 2)
    ends = [[int(str(SCALE[at][1])[k : k + 2], 16) for k in (1, 3, 5)] for at in (first, first + 1)]
    return "#" + "".join(f"{round(a + (place - first) * (b - a)):02x}" for a, b in zip(*ends, strict=True))


def text_on(colour: str) -> str:
    """Black or white, what is read better on a colour: 4.5:1 or more on any.

    Example:
        >>> text_on("#440154"), text_on("#fde725")
        ('#ffffff', '#000000')
    """
    return max(("#000000", "#ffffff"), key=lambda text: contrast(text, colour))


@dataclass(frozen=True)
class Look:
    """How one series is drawn.

    Attributes:
        colour: token of the colour.
        dash: of the line.
        marker: shape of the points.
    """

    colour: str
    dash: str = "solid"
    marker: str = "circle"

    def faint(self, opacity: float) -> str:
        """The same colour, see-through."""
        return f"{self.colour}/{opacity:g}"


def look(name: str) -> Look:
    """The look of a name, the same on every page: it depends on nothing else.

    Names outside `FIRST` get one of the other colours, a dash and a marker by their hash; two may share a colour.

    Example:
        >>> look("sgd"), look("sam").colour
        (Look(colour='@s0', dash='solid', marker='circle'), '@s2')
    """
    if name in FIRST:
        return Look(f"@s{FIRST[name]}", DASHES[FIRST[name]], MARKERS[FIRST[name]])
    first, second, third = hashlib.sha256(f"{SALT} {name}".encode()).digest()[:3]
    colours = len(THEMES["light"]["series"]) - len(DASHES)
    return Look(f"@s{len(DASHES) + first % colours}", DASHES[second % len(DASHES)], MARKERS[third % len(MARKERS)])


def looks(names: Sequence[str], baseline: str) -> dict[str, Look]:
    """The look of each name, the baseline first.

    Of two names of one page whose hash gives colour, dash and marker alike, which is rare, the later in the alphabet gets
    another marker.
    """
    found: dict[str, Look] = {}
    for name in sorted(set(names)):
        own = look(name)
        for step in range(len(MARKERS)):
            if own not in found.values():
                break
            own = replace(own, marker=MARKERS[step])
        found[name] = own
    return {name: found[name] for name in sorted(dict.fromkeys(names), key=lambda name: name != baseline)}


SHAPES = {
    "circle": '<circle cx="13" cy="6" r="3.6"/>', "square": '<path d="M9.7 2.7h6.6v6.6h-6.6z"/>',
    "diamond": '<path d="M13 1.5 17.5 6 13 10.5 8.5 6z"/>', "triangle-up": '<path d="M13 1.8 17.2 9.2H8.8z"/>',
    "triangle-down": '<path d="M13 10.2 17.2 2.8H8.8z"/>', "triangle-left": '<path d="M8.5 6 16 1.8v8.4z"/>',
    "x": '<path d="m9.6 4.4 1.8-1.8L13 4.2l1.6-1.6 1.8 1.8L14.8 6l1.6 1.6-1.8 1.8L13 7.8l-1.6 1.6-1.8-1.8L11.2 6z"/>',
    "cross": '<path d="M11.8 2h2.4v2.8H17v2.4h-2.8V10h-2.4V7.2H9V4.8h2.8z"/>',
    "star": '<path d="m13 1.2 1.3 3.2 3.5.3-2.7 2.2.9 3.4-3-1.9-3 1.9.9-3.4-2.7-2.2 3.5-.3z"/>',
    "pentagon": '<path d="m13 1.8 4.2 3-1.6 4.8h-5.2L8.8 4.8z"/>',
    "hexagon": '<path d="M13 1.6 16.8 3.8v4.4L13 10.4 9.2 8.2V3.8z"/>',
}  # fmt: skip


def swatch(look: Look) -> str:
    """The line and marker of a look as a small SVG for text, in the page's colours.

    Example:
        >>> swatch(look("sgd"))[:68]
        '<svg class="swatch" viewBox="0 0 26 12" style="color:var(--s0)" aria'
    """
    colour = look.colour.split("/")[0].removeprefix("@")
    kind = look.marker.removesuffix("-open")
    fill = "var(--paper)" if look.marker.endswith("-open") else "currentColor"
    dash = {"solid": "", "dash": "6 3", "dot": "2 3", "dashdot": "6 2 2 2", "longdash": "9 3"}.get(
        look.dash, look.dash.replace("px", "").replace(",", " ")
    )
    dash = {"longdashdot": "9 2 2 2"}.get(dash, dash)
    return (
        f'<svg class="swatch" viewBox="0 0 26 12" style="color:var(--{colour})" aria-hidden="true">'
        f'<path d="M0 6h26" stroke="currentColor" stroke-width="2" stroke-dasharray="{dash}"/>'
        f'<g fill="{fill}" stroke="currentColor" stroke-width="1.2">{SHAPES[kind]}</g></svg>'
    )
