"""The dynamics of tracked runs as one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trimtab.report.gradients.dynamics import by_method, dynamics_sections
from trimtab.report.gradients.layers import dynamics_verdict
from trimtab.report.page import render_sections
from trimtab.report.palette import looks
from trimtab.report.parts import series_of
from trimtab.studies.statistics import baseline_of
from trimtab.studies.summary import Dynamics


def render_dynamics(
    found: Sequence[Dynamics], path: Path, *, name: str, headline: str, facts: Sequence[tuple[str, str]], recipe: str
) -> Path:
    """Write the dynamics of tracked runs as one page of the same kind, for runs that need be neither finished nor pruned.

    Args:
        found: the runs; seeds of one label are drawn together.
        path: the file to write.
        name, headline: heading and sentence at the top.
        facts: what was run, as (term, text).
        recipe: YAML shown folded.

    Returns:
        `path`.

    Raises:
        ValueError: no run.
        OSError: the file could not be written.
    """
    if not found:
        raise ValueError("a page of dynamics needs at least one tracked run, got none")
    labels = list(dict.fromkeys(run.method for run in found))
    baseline = baseline_of(labels)
    own = looks(labels, baseline)
    sections = dynamics_sections(found, own)
    verdict = dynamics_verdict(by_method(found), own, baseline, headline)
    rows = [
        {"method": run.method, "seed": run.seed, **layer.model_dump(exclude={"log10_std"})}
        for run in found
        for layer in run.layers
    ]
    data = {
        "schema": "trimtab.gradients/1",
        "name": name,
        "rows": rows,
        "dynamics": [run.model_dump(mode="json") for run in found],
    }
    return render_sections(
        sections, path, name=name, verdict=verdict, series=series_of(own, list(own)[:5]), headline=headline, facts=facts,
        recipe=recipe, data=json.dumps(data), file="gradients.json",
    )  # fmt: skip
