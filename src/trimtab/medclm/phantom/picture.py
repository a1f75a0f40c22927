"""The radiograph of a phantom: densities of body, lungs, bones, vessels and findings added up, then exposed with noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from trimtab.medclm.phantom.anatomy import Anatomy, Points
from trimtab.medclm.phantom.lesions import PhantomLesion

Density = NDArray[np.float64]


def radiograph(anatomy: Anatomy, lesions: Sequence[PhantomLesion], generator: np.random.Generator) -> NDArray[np.uint8]:
    """The picture (size, size), uint8, bones bright; an "L" marks the patient's left."""
    size = anatomy.size
    air = _air(anatomy)
    density = _body(anatomy) - 0.43 * air
    density += _mediastinum(anatomy) + _abdomen(anatomy, generator)
    density += 0.075 * _vessels(anatomy, generator) * np.clip(air * 1.6, 0, 1)
    for lesion in lesions:
        density += lesion.density
    density += _bones(anatomy)
    density = ndimage.gaussian_filter(density, 0.0011 * size)
    exposure = generator.uniform(0.97, 1.04)
    shade = 1.09 / (1 + np.exp(-(density * exposure - 0.60) * 4.4)) - 0.06  # the film's characteristic curve
    low = ndimage.gaussian_filter(generator.standard_normal((size, size)), 0.0025 * size)
    noise = 0.008 * generator.standard_normal((size, size)) + 0.010 * low / low.std()
    shade = shade + noise * (0.5 + 0.5 * (1 - shade))
    shade[_marker(size)] = 0.93
    pixels: NDArray[np.uint8] = np.round(np.clip(shade, 0, 1) * 255).astype(np.uint8)
    return pixels


def _soft(mask: NDArray[np.bool_] | Density, width: float, size: int) -> Density:
    return np.asarray(ndimage.gaussian_filter(np.asarray(mask, dtype=np.float64), width * size))


def _body(anatomy: Anatomy) -> Density:
    """Soft tissue: neck, shoulders, chest wall, thicker towards the middle and below."""
    rows, columns = anatomy.grid
    reach = np.interp(
        rows, [0.0, 0.035, 0.075, 0.13, 0.22, 0.40, 0.7, 1.0], [0.13, 0.15, 0.25, 0.40, 0.465, 0.452, 0.462, 0.472]
    )
    edge = np.clip((reach * anatomy.width - np.abs(columns - anatomy.midline)) / 0.11, 0, 1) ** 0.55
    return np.asarray(edge * (0.62 + 0.05 * rows))


def _air(anatomy: Anatomy) -> Density:
    """Thickness of air in front of each pixel, 0 to 1: steep at the chest wall, flatter inside, more at the bases."""
    air = np.zeros((anatomy.size, anatomy.size))
    for name in ("right lung", "left lung"):
        depth = ndimage.distance_transform_edt(anatomy.organs[name]) / anatomy.size
        air += np.clip(depth / 0.075, 0, 1) ** 0.42
    rows, _ = anatomy.grid
    return np.asarray(_soft(air, 0.0022, anatomy.size) * (0.86 + 0.12 * np.clip((rows - 0.15) / 0.4, 0, 1)))


def _mediastinum(anatomy: Anatomy) -> Density:
    size, (rows, columns) = anatomy.size, anatomy.grid
    heart = ndimage.distance_transform_edt(anatomy.organs["heart"]) / size
    density = 0.25 * _soft(np.clip(heart / 0.10, 0, 1) ** 0.5, 0.004, size)
    across = (columns - anatomy.midline) / anatomy.width
    column = np.clip((0.062 - np.abs(across - 0.008)) / 0.02, 0, 1) * np.clip((0.66 - rows) / 0.1, 0, 1)
    density += 0.17 * _soft(column, 0.006, size)
    knob = anatomy.place([(0.052, 0.275)])[0]
    distance = np.hypot(rows - knob[1], columns - knob[0]) / (0.036 * anatomy.width)
    density += 0.15 * _soft(np.sqrt(np.clip(1 - distance**2, 0, 1)), 0.003, size)
    for side in (-1.0, 1.0):  # hila
        x, y = anatomy.place([(side * 0.085, 0.40 - 0.012 * (side > 0))])[0]
        density += 0.10 * np.exp(-(((columns - x) / 0.028) ** 2) - ((rows - y) / 0.05) ** 2)
    trachea = [anatomy.place([(0.0, 0.0), (-0.004, 0.2), (-0.006, 0.335)])]
    bronchi = [anatomy.place([(-0.006, 0.33), (end, 0.40)]) for end in (-0.06, 0.07)]
    airway = anatomy.lines(trachea, 0.034) + 0.7 * anatomy.lines(bronchi, 0.02)
    return np.asarray(density - 0.13 * _soft(np.clip(airway, 0, 1), 0.003, size))


def _abdomen(anatomy: Anatomy, generator: np.random.Generator) -> Density:
    size, (rows, columns) = anatomy.size, anatomy.grid
    right, left = anatomy.lung_outlines
    lungs = anatomy.filled(right) | anatomy.filled(left)
    found = np.flatnonzero(lungs.any(axis=0))
    bottoms = size - 1 - lungs[::-1, found].argmax(axis=0)
    found, bottoms = found[bottoms > 0.6 * size], bottoms[bottoms > 0.6 * size]  # not the edges beside the spine
    below = np.arange(size)[:, None] > np.interp(np.arange(size), found, bottoms)[None, :]
    liver = 1.0 - 0.18 / (1 + np.exp(-(columns - anatomy.midline - 0.05) / 0.03))
    wall = np.clip((0.425 * anatomy.width - np.abs(columns - anatomy.midline)) / 0.09, 0, 1) ** 0.7
    density = 0.17 * _soft(below * liver * wall * (1.05 - 0.35 * np.clip((rows - 0.75) / 0.25, 0, 1)), 0.004, size)
    x, y = anatomy.place([(0.20 + generator.uniform(-0.03, 0.03), 0.765)])[0]
    bubble = np.clip(1.15 - ((columns - x) / 0.075) ** 2 - ((rows - y) / 0.035) ** 2, 0, 1) ** 0.7
    return np.asarray(density - 0.19 * _soft(bubble * below, 0.004, size))


def _bones(anatomy: Anatomy) -> Density:
    size, (rows, columns) = anatomy.size, anatomy.grid
    posterior, anterior = anatomy.ribs
    density = np.zeros((size, size))
    for curves, width, strength in ((posterior, 0.021, 0.10), (anterior, 0.024, 0.055)):
        tube = anatomy.lines(curves, width) - 0.55 * anatomy.lines(curves, width * 0.62)  # dense shell, light marrow
        density += strength * _soft(tube, 0.0016, size)
    across = (columns - anatomy.midline) / anatomy.width
    body = np.clip((0.040 - np.abs(across)) / 0.008, 0, 1)
    height = 0.030 + 0.018 * rows
    gaps = np.abs(((rows / height) % 1.0) - 0.5) > 0.40
    density += 0.11 * _soft(body * np.where(gaps, 0.45, 1.0), 0.0025, size)
    spinous = np.exp(-((across / 0.006) ** 2)) * (np.abs(((rows / height) % 1.0) - 0.5) < 0.22)
    density += 0.035 * _soft(spinous, 0.002, size)
    t = np.linspace(0, 1, 30)
    for side in (-1.0, 1.0):
        clavicle = np.stack([side * (0.028 + 0.33 * t), 0.168 - 0.06 * t - 0.014 * np.sin(2 * np.pi * t)], axis=1)
        shaft = anatomy.lines([anatomy.place(clavicle)], 0.023) - 0.5 * anatomy.lines([anatomy.place(clavicle)], 0.012)
        density += 0.12 * _soft(shaft, 0.002, size)
        blade = anatomy.filled(
            anatomy.place([(side * x, y) for x, y in ((0.33, 0.15), (0.43, 0.13), (0.415, 0.30), (0.36, 0.41))])
        )
        density += 0.045 * _soft(blade, 0.006, size)
        x, y = anatomy.place([(side * 0.445, 0.125)])[0]
        head = np.sqrt(np.clip(1 - ((columns - x) ** 2 + (rows - y) ** 2) / 0.045**2, 0, 1))
        density += 0.13 * _soft(head, 0.003, size)
    return density


def _vessels(anatomy: Anatomy, generator: np.random.Generator) -> Density:
    """Branching lines from both hila, thinner with distance."""
    by_width: dict[int, list[Points]] = {}
    for side in (-1.0, 1.0):
        for angle in np.linspace(-1.35, 1.35, 11):
            start = np.array([side * 0.075, 0.40]) + generator.normal(0, 0.008, 2)
            _branch(start, angle + generator.normal(0, 0.1), side, 4, generator, by_width)
    density = np.zeros((anatomy.size, anatomy.size))
    for level, curves in by_width.items():
        density += (0.35 + 0.16 * level) * anatomy.lines([anatomy.place(curve) for curve in curves], 0.0016 * level)
    return _soft(density, 0.0016, anatomy.size)


def _branch(
    start: Points,
    angle: float,
    side: float,
    level: int,
    generator: np.random.Generator,
    by_width: dict[int, list[Points]],
) -> None:
    points = [start]
    for _ in range(5):
        angle += generator.normal(0, 0.09)
        points.append(points[-1] + 0.0145 * np.array([side * np.cos(angle), np.sin(angle)]))
    by_width.setdefault(level, []).append(np.array(points))
    if level > 1:
        for turn in (-1.0, 1.0):
            if generator.random() < 0.88:
                _branch(points[-1], angle + turn * generator.uniform(0.16, 0.42), side, level - 1, generator, by_width)


def _marker(size: int) -> NDArray[np.bool_]:
    picture = Image.new("1", (size, size))
    font = ImageFont.load_default(size=0.055 * size)
    ImageDraw.Draw(picture).text((0.925 * size, 0.045 * size), "L", fill=1, font=font)
    return np.array(picture)
