"""Findings of the phantom: where they lie, their masks, and the density they add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from trimtab.medclm.phantom.anatomy import Anatomy, Mask
from trimtab.medclm.records import Side

FINDINGS = ("nodule", "mass", "effusion", "consolidation", "cardiomegaly")
LOBES = ("right upper lobe", "right middle lobe", "right lower lobe", "left upper lobe", "left lower lobe")


@dataclass(frozen=True)
class PhantomLesion:
    """One finding.

    Attributes:
        label: class name.
        mask: its pixels.
        organ: the organ it was put into, the truth of the host.
        side: side of the patient.
        density: what it adds to the picture's density; all 0 for a large heart, which is drawn as anatomy.
    """

    label: str
    mask: Mask
    organ: str
    side: Side
    density: NDArray[np.float64]


def drawn(label: str, anatomy: Anatomy, generator: np.random.Generator, taken: Mask) -> PhantomLesion | None:
    """A finding placed at random outside `taken`; None where it finds no place."""
    if label == "cardiomegaly":
        heart = anatomy.organs["heart"]
        return PhantomLesion(label, heart, "heart", "midline", np.zeros(heart.shape))
    if label == "effusion":
        return _effusion(anatomy, generator, taken)
    if label == "consolidation":
        return _consolidation(anatomy, generator, taken)
    return _round(label, anatomy, generator, taken)


def _side(organ: str) -> Side:
    return "left" if organ.startswith("left") else "right"


def _round(label: str, anatomy: Anatomy, generator: np.random.Generator, taken: Mask) -> PhantomLesion | None:
    """A sphere with a wavy edge, wholly inside one lobe."""
    radius = (
        float(generator.uniform(0.015, 0.03) if label == "nodule" else generator.uniform(0.045, 0.065)) * anatomy.size
    )
    lobes = [str(lobe) for lobe in generator.permutation(LOBES)]
    for lobe in lobes:
        depth = ndimage.distance_transform_edt(anatomy.organs[lobe] & ~taken)
        rows, columns = np.nonzero(depth > radius * 1.3)
        if not rows.size:
            continue
        chosen = int(generator.integers(rows.size))
        down, across = (
            np.arange(anatomy.size)[:, None] - rows[chosen],
            np.arange(anatomy.size)[None, :] - columns[chosen],
        )
        angle, waves = np.arctan2(down, across), np.zeros((anatomy.size, anatomy.size))
        for order in (2, 3, 5):
            strength = generator.uniform(0.0, 0.08 if label == "nodule" else 0.10)
            waves += strength * np.cos(order * angle + generator.uniform(0, 2 * np.pi))
        distance = np.hypot(down, across) / (radius * (1 + waves))
        density = np.sqrt(np.clip(1 - distance**2, 0, 1))
        strength = generator.uniform(0.20, 0.27) if label == "nodule" else generator.uniform(0.26, 0.33)
        density = strength * ndimage.gaussian_filter(density, 0.003 * anatomy.size)
        return PhantomLesion(label, (distance <= 1) & anatomy.organs[lobe], lobe, _side(lobe), density)
    return None


def _consolidation(anatomy: Anatomy, generator: np.random.Generator, taken: Mask) -> PhantomLesion | None:
    """A cloud inside one lobe, with holes of air."""
    lobe = str(generator.choice(LOBES))
    inside = anatomy.organs[lobe]
    depth = ndimage.distance_transform_edt(inside & ~taken)
    rows, columns = np.nonzero(depth > 0.025 * anatomy.size)
    if not rows.size:
        return None
    chosen = int(generator.integers(rows.size))
    centre = (rows[chosen], columns[chosen])
    radius = float(generator.uniform(0.075, 0.12)) * anatomy.size
    distance = (
        np.hypot(np.arange(anatomy.size)[:, None] - centre[0], np.arange(anatomy.size)[None, :] - centre[1]) / radius
    )
    coarse = _cloud(anatomy.size, 0.03, generator)
    field = 1.0 - distance + 0.28 * coarse
    parts, count = ndimage.label((field > 0.12) & inside & ~taken)
    if not count:
        return None
    largest = 1 + int(np.argmax(ndimage.sum_labels(np.ones_like(parts), parts, range(1, count + 1))))
    mask = np.asarray(parts == largest)
    if mask.sum() < (0.05 * anatomy.size) ** 2:
        return None
    soft = ndimage.gaussian_filter(mask.astype(np.float64), 0.009 * anatomy.size)
    texture = np.clip(0.85 + 0.12 * _cloud(anatomy.size, 0.012, generator), 0.5, 1.2)
    return PhantomLesion("consolidation", mask, lobe, _side(lobe), generator.uniform(0.26, 0.33) * soft * texture)


def _effusion(anatomy: Anatomy, generator: np.random.Generator, taken: Mask) -> PhantomLesion | None:
    """Fluid at the base of one lung under a curved surface that rises to the side wall."""
    organ = str(generator.choice(("right lung", "left lung")))
    lung = anatomy.organs[organ]
    rows, columns = anatomy.grid
    bottom = (np.flatnonzero(lung.any(axis=1))[-1] + 1) / anatomy.size
    extent = np.flatnonzero(lung.any(axis=0)) / anatomy.size
    wall = extent[0] if organ.startswith("right") else extent[-1]
    away = np.abs(columns - wall) / (extent[-1] - extent[0])
    height = float(generator.uniform(0.16, 0.28))
    surface = bottom - height + 0.85 * height * np.minimum(away / 0.85, 1.0) ** 0.75 * 0.62
    mask = lung & (rows > surface) & ~taken
    if mask.sum() < (0.05 * anatomy.size) ** 2:
        return None
    depth = np.clip((rows - surface) / 0.10, 0, 1) ** 0.6
    soft = ndimage.gaussian_filter(mask.astype(np.float64), 0.006 * anatomy.size)
    return PhantomLesion("effusion", mask, organ, _side(organ), (0.16 + 0.17 * depth) * soft)


def _cloud(size: int, grain: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Smooth noise of mean 0 and standard deviation 1; `grain` is its width in fractions of the side."""
    noise = ndimage.gaussian_filter(generator.standard_normal((size, size)), grain * size, mode="wrap")
    return np.asarray((noise - noise.mean()) / noise.std())
