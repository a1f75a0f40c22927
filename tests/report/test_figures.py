"""Figures as objects and files; tables as LaTeX, frames and HTML."""

from __future__ import annotations

import builtins
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch

import trimtab
from tests.report.factory import make_dynamics, make_summary
from tests.report.precision_factory import precision_study
from tests.report.test_curvature import summary as curvature_summary
from trimtab.observe import summary as model_summary
from trimtab.pruning import one_shot
from trimtab.report import figures, save_figures
from trimtab.report.figures import drawings

go = pytest.importorskip("plotly.graph_objects")
STUDIES = {
    "weights": lambda: make_summary().model_copy(update={"dynamics": make_dynamics(("sgd", "var"), (0, 1), steps=30)}),
    "precision": precision_study,
    "curvature": curvature_summary,
    "gradients": lambda: make_dynamics(("sgd", "var"), (0, 1, 2), steps=30),
}


@pytest.mark.parametrize("kind", STUDIES)
def test_every_figure_of_every_study_is_a_plotly_object_without_tokens(kind: str) -> None:
    found = figures(STUDIES[kind]())
    assert len(found) > 2
    assert all(isinstance(figure, go.Figure) for figure in found.values())
    assert '"@' not in "".join(figure.to_json() for figure in found.values())


def test_the_accuracy_figure_holds_the_means_of_the_rows() -> None:
    study = make_summary(("sgd", "var"))
    traces = {trace.name: trace for trace in figures(study)["accuracy-recalibrated"].data}
    last = max(row.sparsity for row in study.rows)
    own = [
        row.accuracy
        for row in study.rows
        if (row.method, row.sparsity, row.score, row.scope, row.recalibrated)
        == ("var", last, "magnitude", "global", True)
    ]
    assert traces["var"].y[-1] == pytest.approx(sum(own) / len(own))
    assert traces["var"].line.color == "#0067b1"
    with pytest.raises(ValueError, match="theme is one of light, dark, got 'blue'"):
        drawings(study, "blue")


@pytest.mark.parametrize("kind", STUDIES)
def test_files_for_a_paper_are_vectors_with_their_texts(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    study = STUDIES[kind]()
    names = [name for name, one in drawings(study).items() if one["data"][0]["type"] != "surface"]
    chosen = {
        one["data"][0]["type"]: name for name, one in drawings(study).items() if name in names
    }  # one of each kind
    files = save_figures(study, tmp_path / "figures", ("svg", "pdf"), list(chosen.values()))
    assert len(files) == 2 * len(chosen)
    assert all(file.stat().st_size > 1000 for file in files)
    texts = [text for file in files if file.suffix == ".svg" for text in ET.parse(file).getroot().itertext()]
    assert any(word in text for text in texts for word in ("sgd", "step", "full", "sparsity"))
    with pytest.raises(ValueError, match=r"there is no figure 'none'; there are"):
        save_figures(study, tmp_path, names=["none"])
    with pytest.raises(ValueError, match=r"a format is one of .*, got 'doc'"):
        save_figures(study, tmp_path / "never", ("doc",), names[:1])
    assert not (tmp_path / "never").exists()


def test_latex_is_booktabs_with_the_best_in_bold_by_the_paired_test() -> None:
    text = make_summary(("sgd", "var_a&b")).to_latex(caption="Digits")
    assert r"\toprule" in text
    assert r"var\_a\&b" in text
    lines = [line for line in text.splitlines() if line.startswith(("sgd", "var"))]
    assert all(line.count("&") - line.count(r"\&") == 7 for line in lines)
    assert all(r"\pm" in cell for line in lines for cell in line.replace(r"\&", "").split("&")[1:])
    sgd, var = (line.replace(r"\&", "").split("&") for line in lines)
    assert r"\mathbf" in var[2]
    assert r"\mathbf" not in sgd[2]  # at 50 % the interval of the paired difference excludes zero
    assert r"\mathbf" in sgd[1]  # dense it does not, though the mean is lower
    assert r"\mathbf" in var[1]
    assert "one seed" in make_summary(("sgd",), (0,)).to_latex()
    with pytest.raises(ValueError, match="has no rows that are recalibrated"):
        make_summary(("sgd",), recalibrated=False).to_latex(recalibrated=True)


def test_latex_of_formats_and_of_curvature() -> None:
    text = precision_study().to_latex(caption="Tiny_net")
    assert r"Tiny\_net. Number formats; mean" in text
    full, *others = [line for line in text.splitlines() if line.endswith(r"\\") and "&" in line][1:]
    assert full.startswith("full & $")
    assert full.endswith(r"& -- \\")  # nothing to be held against
    assert any(line.endswith(r"& -- & -- \\") for line in others)  # diverged on every seed
    finished = [line for line in others if "--" not in line]
    assert all(line.count(r"\pm") == 2 for line in finished)
    assert all("$+" in line or "$-" in line for line in finished)
    found = curvature_summary()
    lines = [line for line in found.to_latex().splitlines() if line.endswith(r"\\")]
    sparsities = {row.sparsity for row in found.rows}
    assert all(line.count("&") == len(sparsities) for line in lines)
    own = [row.eigenvalues[0] for row in found.rows if (row.method, row.sparsity) == (found.rows[0].method, 0.0)]
    assert f"${sum(own) / len(own):.3g}" in next(line for line in lines if line.startswith(found.rows[0].method))
    assert r"\mathbf" not in found.to_latex()


def objects() -> dict[str, Any]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = trimtab.attach(optimizer, trimtab.penalties.VarianceAmplifier(strength=1e-4))
    return {
        "pruned": one_shot(net, 0.5), "summary": model_summary(net), "handle": handle, "study": make_summary(),
        "precision": precision_study(), "curvature": curvature_summary(),
    }  # fmt: skip


def test_objects_are_frames_and_notebook_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    found = objects()
    for name, one in found.items():
        assert len(one.to_pandas()) == len(one.records()), name
        assert one._repr_html_().startswith("<table>"), name
        assert "<script" not in one._repr_html_()
    assert found["pruned"].to_pandas()["removed"].sum() == found["pruned"].count
    assert "VarianceAmplifier" in found["handle"]._repr_html_()
    assert "var&lt;b&gt;" in found["curvature"]._repr_html_()
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'trimtab\[frames\]'"):
        found["pruned"].to_pandas()
