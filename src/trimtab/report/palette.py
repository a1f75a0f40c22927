"""Colours, dashes and markers: one look per method in every figure, in a light and a dark theme.

Every series colour stands at 3:1 or more against its background and every text colour at 4.5:1 (WCAG 2.1 AA); a test
computes both. Colours are never the only mark: each method has a dash and a marker of its own as well.

Figures name colours by tokens that the page's script replaces with the theme's: `@ink`, `@grid`, `@s2` (third series),
`@s2/0.2` (the same at 20 % opacity).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

THEMES: dict[str, dict[str, Any]] = {
    "light": {
        "paper": "#ffffff", "panel": "#f4f6f9", "ink": "#1f2430", "muted": "#535c6b", "grid": "#dfe3ea", "rule": "#c4cad4",
        "link": "#005a9c", "good": "#006b4f", "bad": "#a63a06",
        "series": ["#1f2430", "#0067b1", "#d2560f", "#00906b", "#7b1fe0", "#6b3410", "#c2308a", "#5f7383"],
    },
    "dark": {
        "paper": "#14171d", "panel": "#1d2129", "ink": "#f2f4f8", "muted": "#a9b2c0", "grid": "#2d333e", "rule": "#475062",
        "link": "#7fc1ff", "good": "#4fd6aa", "bad": "#ffa870",
        "series": ["#f2f4f8", "#5db0f5", "#ff9a5c", "#2fb58c", "#8d84ff", "#c98a5c", "#ef5fc0", "#8ea4b5"],
    },
}  # fmt: skip
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "6px,2px", "2px,6px")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "pentagon")


@dataclass(frozen=True)
class Look:
    """How one method is drawn."""

    place: int

    @property
    def colour(self) -> str:
        """Token of the series colour; after eight methods the colours come again with other dashes."""
        return f"@s{self.place % len(MARKERS)}"

    @property
    def dash(self) -> str:
        """Dash of the line."""
        return DASHES[(self.place + self.place // len(DASHES)) % len(DASHES)]

    @property
    def marker(self) -> str:
        """Shape of the points."""
        return MARKERS[(self.place + 3 * (self.place // len(MARKERS))) % len(MARKERS)]

    def faint(self, opacity: float) -> str:
        """The same colour, see-through."""
        return f"{self.colour}/{opacity:g}"


def looks(methods: Sequence[str], baseline: str) -> dict[str, Look]:
    """A look for each method; the baseline has the first, the colour of the text."""
    ordered = sorted(dict.fromkeys(methods), key=lambda method: method != baseline)
    return {method: Look(place) for place, method in enumerate(ordered)}
