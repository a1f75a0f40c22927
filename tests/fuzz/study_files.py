"""What studies keep between two calls, and the run folders of MedCLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.fuzz.running import Kind
from tests.report.medclm_factory import write_run
from trimtab.observe.curvature import Objective
from trimtab.observe.landscape import random_directions, section
from trimtab.report.medclm.run import render_medclm_run
from trimtab.studies.curvature.measuring import kept_measurement
from trimtab.studies.curvature.records import CurvatureRow, Density, Measured

NETWORK = {"network": "abc", "sparsity": 0.0}


def _objective() -> Objective:
    torch.manual_seed(0)
    return Objective(nn.Linear(3, 2), nn.functional.cross_entropy, (torch.randn(4, 3), torch.tensor([0, 1, 1, 0])))


def _section(folder: Path) -> Any:
    objective = _objective()
    return section(objective, random_directions(objective, 1), points=3, at_once=3, file=folder / "points.json")


def _landscape(folder: Path) -> Path:
    _section(folder)
    return folder / "points.json"


def _numbers(found: Any) -> None:
    assert len(found.losses) == 3
    assert all(isinstance(loss, float) for loss in found.losses)
    assert found.losses[1] == found.centre


def _curvature(folder: Path) -> Path:
    same = {"method": "sgd", "seed": 0, "sparsity": 0.0}
    row = CurvatureRow(
        **same, recalibrated=False, accuracy=0.9, split="test", loss=0.3, gradient_norm=0.1, weight_norm=3.0, coordinates=90,
        eigenvalues=[4.5], residuals=[0.01], converged=True, trace=20.0, trace_error=0.5, sharpness=0.2,
        sharpness_one_step=0.1, adaptive_sharpness=0.3, normalized_eigenvalue=40.5, normalized_trace=2.0, products=30,
    )  # fmt: skip
    density = Density(**same, start=-1.0, step=0.5, values=[0.1, 0.2], width=0.1, negative=0.0, products=16)
    found = Measured(row=row, density=density).model_dump(mode="json")
    (folder / "kept.json").write_text(json.dumps({"identity": NETWORK, **found}))
    return folder / "kept.json"


def _kept(folder: Path) -> Any:
    return kept_measurement(folder / "kept.json", NETWORK)


def _medclm_run(folder: Path) -> list[Path]:
    write_run(folder)
    return [folder / name for name in ("run.json", "stages.jsonl", "evaluation.json", "predictions.jsonl")]


def _page(folder: Path) -> str:
    return render_medclm_run(folder).read_text()


def _no_markup(page: Any) -> None:
    assert "<script>0?" not in page


KINDS = [
    Kind("landscape", _landscape, _section, _numbers, short=500),
    Kind("curvature", _curvature, _kept),
    Kind("medclm-run", _medclm_run, _page, _no_markup, short=60),
]
