"""Curvature over training: the largest eigenvalue and SAM's sharpness, as measured and averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trimtab.report.palette import Look
from trimtab.report.parts import Figure, Section, plain
from trimtab.report.traces import line
from trimtab.runs.curvature_tracking import RHO
from trimtab.studies.curvature.track import DECAY, moving_average
from trimtab.studies.summary import CurvatureTrack

TITLE = "Curvature over training"
Values = Callable[[CurvatureTrack], Sequence[float]]


def _traces(tracks: Sequence[CurvatureTrack], looks: Mapping[str, Look], values: Values) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    named: set[str] = set()
    for track in tracks:
        look, own = looks[track.method], list(values(track))
        thin = replace(look, colour=look.faint(0.35), dash="solid")
        raw = line(track.method, thin, track.epochs, own, None, width=1.2, group=True, showlegend=False)
        traces.append(raw | {"name": f"{plain(track.method)}, as measured"})
        traces.append(
            line(
                track.method, look, track.epochs, moving_average(own),
                "%{fullData.name}, seed %{customdata[0]}, epoch %{x}<br><b>%{y:.4g}</b>, as measured %{customdata[1]}",
                width=2.2, group=True, showlegend=track.method not in named,
                customdata=[[track.seed, f"{value:.4g}"] for value in own],
            )
        )  # fmt: skip
        named.add(track.method)
    return traces


def _figure(
    name: str, label: str, tracks: Sequence[CurvatureTrack], looks: Mapping[str, Look], values: Values
) -> Figure:
    positive = all(value > 0 for track in tracks for value in values(track))
    return Figure(
        f"track-{name}",
        f"{label} after each measured epoch. Thick: moving average (decay {DECAY:g}), thin: as measured; one line per run.",
        {"": _traces(tracks, looks, values)},
        {
            "xaxis": {"title": {"text": "epoch"}, "zeroline": False},
            "yaxis": {"title": {"text": label.lower()}, "type": "log" if positive else "linear", "zeroline": False},
            "height": 340,
        },
    )


def track_section(tracks: Sequence[CurvatureTrack], looks: Mapping[str, Look]) -> Section:
    """Curves of the runs that were tracked, or a sentence saying that none was.

    Args:
        tracks: one per run.
        looks: colour, dash and marker of every label.
    """
    if not tracks:
        return Section("track", TITLE, missing="Curvature was not tracked; train with --track curvature.")
    images = " or ".join(f"{count:,}" for count in sorted({track.batch for track in tracks}))
    sentences = [
        f"Loss of the task on one fixed batch of {images} training images, without augmentation and penalty, BatchNorm by its "
        f"running statistics. Sharpness: rise of the loss after one step of SAM, rho {RHO:g}."
    ]
    figures = [
        _figure("eigenvalue", "Largest eigenvalue", tracks, looks, lambda track: track.eigenvalues),
        _figure("sharpness", "SAM sharpness", tracks, looks, lambda track: track.sharpness),
    ]
    return Section("track", TITLE, sentences, figures)
