"""Outlines of a chest seen from the front: thorax, lungs with lobes, heart, spine, ribs, diaphragm, as masks and curves.

Lengths are fractions of the picture's side. A point is (distance from the midline, height): positive distances go to the
right of the picture, which is the patient's left (radiological convention). Sizes are made up to look right, not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]

_RIGHT_LUNG = (
    (0.125, 0.115), (0.085, 0.16), (0.05, 0.26), (0.045, 0.40), (0.05, 0.55), (0.065, 0.685), (0.13, 0.645), (0.21, 0.635),
    (0.30, 0.675), (0.365, 0.755), (0.372, 0.66), (0.362, 0.50), (0.33, 0.34), (0.27, 0.20), (0.20, 0.125),
)  # fmt: skip
_LEFT_LUNG = (
    (0.125, 0.115), (0.085, 0.16), (0.055, 0.26), (0.05, 0.40), (0.055, 0.55), (0.07, 0.70), (0.14, 0.675), (0.22, 0.665),
    (0.30, 0.70), (0.365, 0.775), (0.372, 0.67), (0.362, 0.50), (0.33, 0.34), (0.27, 0.20), (0.20, 0.125),
)  # fmt: skip
_HEART = (
    (-0.34, 0.54), (-0.36, 0.62), (-0.28, 0.70), (0.0, 0.735), (0.35, 0.735), (0.62, 0.70), (0.64, 0.64), (0.52, 0.555),
    (0.33, 0.47), (0.12, 0.42), (-0.16, 0.44),
)  # fmt: skip
_THORAX = (
    (0.0, 0.055),
    (0.14, 0.075),
    (0.27, 0.155),
    (0.36, 0.32),
    (0.395, 0.50),
    (0.405, 0.66),
    (0.40, 0.80),
    (0.36, 0.90),
)


@dataclass(frozen=True)
class Anatomy:
    """One chest.

    Attributes:
        size: side of the picture in pixels.
        midline: x of the body's middle.
        width, height: scale of the whole chest across and down.
        heart: widest diameter of the heart / widest inner diameter of the thorax.
        wobble: small shifts of the outlines' points.
        rib_drop: how steeply ribs fall.
    """

    size: int
    midline: float
    width: float
    height: float
    heart: float
    wobble: NDArray[np.float64]
    rib_drop: float

    @classmethod
    def drawn(cls, generator: np.random.Generator, size: int, *, large_heart: bool) -> Anatomy:
        """A chest drawn at random; its heart takes 0.40-0.47 of the thorax, a large one 0.56-0.64."""
        return cls(
            size=size,
            midline=0.5 + generator.uniform(-0.015, 0.015),
            width=generator.uniform(0.95, 1.08),
            height=generator.uniform(0.96, 1.10),
            heart=generator.uniform(0.56, 0.64) if large_heart else generator.uniform(0.40, 0.47),
            wobble=generator.uniform(-0.005, 0.005, (3, 15, 2)),
            rib_drop=generator.uniform(0.85, 1.2),
        )

    def place(self, points: Sequence[tuple[float, float]] | Points) -> Points:
        """(distance from the midline, height) to (x, y) in the picture."""
        array = np.asarray(points, dtype=np.float64)
        return np.stack([self.midline + self.width * array[:, 0], 0.02 + self.height * (array[:, 1] - 0.02)], axis=1)

    def filled(self, points: Points) -> Mask:
        """Mask of the polygon through points (x, y)."""
        picture = Image.new("1", (self.size, self.size))
        ImageDraw.Draw(picture).polygon([(x * self.size - 0.5, y * self.size - 0.5) for x, y in points], fill=1)
        return np.array(picture)

    def lines(self, curves: Sequence[Points], width: float) -> NDArray[np.float64]:
        """Coverage in [0, 1] of curves drawn `width` wide."""
        scale = 2 * self.size
        picture = Image.new("L", (scale, scale))
        pen = ImageDraw.Draw(picture)
        for curve in curves:
            points = [(float(x) * scale, float(y) * scale) for x, y in curve]
            pen.line(points, fill=255, width=max(1, round(width * scale)), joint="curve" if width * scale > 5 else None)
        return np.array(picture.reduce(2), dtype=np.float64) / 255

    @cached_property
    def heart_outline(self) -> Points:
        """(x, y) around the heart."""
        wide = max(point[0] for point in _HEART) - min(point[0] for point in _HEART)
        scale = self.heart * 2 * 0.372 / wide
        grown = 1 + 0.35 * max(0.0, self.heart - 0.48)  # a large heart is taller as well
        points = [(x * scale, 0.735 - (0.735 - y) * grown) for x, y in _HEART]
        return closed(self.place(points) + self.wobble[2, : len(points)])

    @cached_property
    def lung_outlines(self) -> tuple[Points, Points]:
        """(x, y) around the patient's right and left lung, each with the part the heart covers."""
        right = self.place([(-x, y) for x, y in _RIGHT_LUNG]) + self.wobble[0]
        return closed(right), closed(self.place(_LEFT_LUNG) + self.wobble[1])

    @cached_property
    def ribs(self) -> tuple[list[Points], list[Points]]:
        """Curves (x, y) of the posterior and of the anterior ribs."""
        t = np.linspace(0, 1, 40)
        posterior, anterior = [], []
        for number in range(10):
            level = 0.095 + 0.064 * number
            reach = float(np.interp(level + 0.05, [0.08, 0.16, 0.3, 0.5, 0.8], [0.15, 0.27, 0.355, 0.392, 0.40]))
            drop = self.rib_drop * (0.03 + 0.0115 * number)
            across = 0.04 + (reach - 0.04) * np.sin(np.pi / 2 * t)
            back = np.stack([across, level - 0.018 * np.sin(np.pi * t) + drop * t**2], axis=1)
            end = reach - (reach - 0.13) * t
            front = np.stack([end, back[-1, 1] + self.rib_drop * (0.115 * t**0.8 + 0.02 * np.sin(np.pi * t))], axis=1)
            for side in (-1.0, 1.0):
                posterior.append(self.place(back * (side, 1.0)))
                if 0 < number < 7:
                    anterior.append(self.place(front * (side, 1.0)))
        return posterior, anterior

    @cached_property
    def organs(self) -> dict[str, Mask]:
        """Organ -> mask. Lobes are those seen from the front, simplified: they do not overlap, as real ones do."""
        rows, columns = self.grid
        heart = self.filled(self.heart_outline)
        thorax_points = [(-x, y) for x, y in reversed(_THORAX)] + list(_THORAX[1:])
        right, left = (self.filled(outline) & ~heart for outline in self.lung_outlines)
        across, down = (columns - self.midline) / self.width, 0.02 + (rows - 0.02) / self.height
        horizontal = 0.40 - 0.06 * (across + 0.06)
        oblique = 0.47 + (0.34 + across) * 1.05
        upper, middle = down < horizontal, down < oblique
        lingula = down < 0.50 + (0.36 - across) * 0.85
        posterior, anterior = self.ribs
        spine = (np.abs(across) < 0.036) & (rows > 0.03) & (rows < 0.97) & np.ones_like(right)
        return {
            "thorax": self.filled(self.place(thorax_points)) | right | left | heart,
            "right lung": right,
            "left lung": left,
            "right upper lobe": right & upper,
            "right middle lobe": right & ~upper & middle,
            "right lower lobe": right & ~upper & ~middle,
            "left upper lobe": left & lingula,
            "left lower lobe": left & ~lingula,
            "heart": heart,
            "spine": spine,
            "ribs": self.lines([*posterior, *anterior], 0.021) > 0.5,
            "diaphragm": self._diaphragm(),
        }

    @cached_property
    def grid(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Heights (size, 1) and distances from the left edge (1, size) of the pixels' middles."""
        steps = (np.arange(self.size) + 0.5) / self.size
        return steps[:, None], steps[None, :]

    def _diaphragm(self) -> Mask:
        """A band below the lungs."""
        band = np.zeros((self.size, self.size), dtype=bool)
        thickness = max(1, round(0.028 * self.size))
        for outline in self.lung_outlines:
            lung = self.filled(outline)
            columns = np.flatnonzero(lung.any(axis=0))
            bottoms = self.size - 1 - lung[::-1, columns].argmax(axis=0)
            for column, bottom in zip(columns, bottoms, strict=True):
                if bottom > 0.55 * self.size:
                    band[bottom + 1 : bottom + 1 + thickness, column] = True
        return band


def closed(points: Points) -> Points:
    """400 points of a smooth closed curve through `points`."""
    from scipy.interpolate import splev, splprep

    loop = np.vstack([points, points[:1]])
    spline, _ = splprep([loop[:, 0], loop[:, 1]], s=0, per=True)
    x, y = splev(np.linspace(0, 1, 400), spline)
    return np.stack([x, y], axis=1)
