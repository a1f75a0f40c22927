"""`trimtab curvature`: what it measures, that it goes on where it stopped, and that it leaves runs as they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.runs.tiny import tiny_recipe
from trimtab import pruning
from trimtab.cli import main
from trimtab.cli.curvature_command import finished_runs
from trimtab.runs.curvature_objective import training_images
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train
from trimtab.studies.curvature.measuring import MeasuredRun
from trimtab.studies.curvature.records import CurvatureSettings, CurvatureSummary
from trimtab.studies.prune_run import prune_run

QUICK = [
    "--examples", "40", "--batch", "40", "--density-steps", "4", "--trace-products", "9", "--max-products", "12",
]  # fmt: skip
SETTINGS = CurvatureSettings(examples=40, batch=20, density_probes=0, trace_products=9)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for method in ("sgd", "var"):
        made = train(tiny_recipe(method=method, epochs=1, data__limit_train=130), folder / method / "seed0")
        prune_run(made, split="validation")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def by_power_iteration(folder: Path, sparsity: float) -> tuple[float, float]:
    """Largest eigenvalue and loss in float64, by plain autograd: another algorithm than the one under test."""
    run = RunFolder(folder)
    recipe = run.recipe
    data = load_data(recipe)
    model = trained_model(run, data)
    if sparsity:
        pruning.one_shot(model, sparsity)
        calibration = batches_of(recipe, data, "train").sample(recipe.pruning.recalibrate_batches, recipe.seed)
        pruning.recalibrate(model, calibration)
    model = model.double()
    ((inputs, targets),) = training_images(recipe, data, 40, 40, 0, torch.device("cpu"))
    weights = list(model.parameters())
    loss = cross_entropy(model(inputs.double()), targets)
    slopes = torch.autograd.grad(loss, weights, create_graph=True)
    kept = [(weight.detach() != 0).double() if sparsity else torch.ones_like(weight) for weight in weights]
    generator = torch.Generator().manual_seed(3)
    vector = [mask * torch.randn(mask.shape, generator=generator, dtype=torch.float64) for mask in kept]
    value = 0.0
    for _ in range(25):
        norm = torch.cat([part.reshape(-1) for part in vector]).norm()
        vector = [part / norm for part in vector]
        product = torch.autograd.grad(slopes, weights, vector, retain_graph=True)
        product = tuple(mask * part for mask, part in zip(kept, product, strict=True))
        value = float(sum((one * other).sum() for one, other in zip(vector, product, strict=True)))
        vector = list(product)
    return value, float(loss.detach())


@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_the_row_is_that_of_the_pruned_and_recalibrated_network(runs: Path, tmp_path: Path, sparsity: float) -> None:
    run = MeasuredRun(RunFolder(runs / "sgd" / "seed0"), SETTINGS, tmp_path, "validation")
    row = run.measure(sparsity, lambda text: None).row
    value, loss = by_power_iteration(runs / "sgd" / "seed0", sparsity)
    assert row.loss == pytest.approx(loss, rel=1e-4)
    assert row.eigenvalues[0] == pytest.approx(value, rel=0.02)
    assert row.recalibrated == bool(sparsity)
    assert row.normalized_eigenvalue == pytest.approx(row.eigenvalues[0] * row.weight_norm**2)
    size = sum(parameter.numel() for parameter in run.model.parameters())
    assert row.coordinates == size if not sparsity else row.coordinates < 0.2 * size
    assert 0 < row.sharpness_one_step <= row.sharpness
    assert row.adaptive_sharpness > 0


def test_accuracy_is_taken_from_the_runs_own_pruning_results_only_when_they_are_of_this_network(
    runs: Path, tmp_path: Path
) -> None:
    folder = RunFolder(runs / "var" / "seed0")
    known = prune_run(folder, split="validation")
    run = MeasuredRun(folder, SETTINGS, tmp_path, "validation")
    wanted = {round(row.sparsity, 2): row.accuracy for row in known.rows if row.recalibrated and row.sparsity}
    assert {round(one.sparsity, 2): one.accuracy for one in run.pruned_accuracies()} == wanted
    assert set(wanted) == {0.5, 0.9}
    assert run._known(0.0, recalibrated=False) is not None
    assert run._known(0.3, recalibrated=True) is None
    run._network = "another"
    assert run._known(0.0, recalibrated=False) is None
    evaluated = run._accuracy(0.0, recalibrated=False)
    run._network = hashlib.sha256(folder.model_file.read_bytes()).hexdigest()[:16]
    assert run._accuracy(0.0, recalibrated=False) == pytest.approx(evaluated)


def test_the_command_measures_keeps_and_goes_on(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(runs)
    words = ["curvature", str(runs), "--sparsities", "0,0.9", *QUICK, "--out", str(tmp_path)]
    measured: list[str] = []
    real = MeasuredRun._measure

    def counted(run: MeasuredRun, sparsity: float, *, recalibrated: bool) -> object:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(f"{run.label} {sparsity}")
        return real(run, sparsity, recalibrated=recalibrated)

    monkeypatch.setattr(MeasuredRun, "_measure", counted)
    assert main(words) == 130
    monkeypatch.setattr(
        MeasuredRun, "_measure", lambda *given, **named: measured.append("again") or real(*given, **named)
    )
    assert main(words) == 0
    assert measured == ["sgd 0.0", "var 0.0", "sgd 0.9", "again"]
    assert contents(runs) == before
    first = json.loads((tmp_path / "curvature.json").read_text())
    text = capsys.readouterr().out
    assert "largest eigenvalue" in text
    assert str(tmp_path / "curvature.html") in text.replace("\n", "")
    assert main(words) == 0
    again = json.loads((tmp_path / "curvature.json").read_text())
    assert again["rows"] == first["rows"]
    summary = CurvatureSummary.model_validate(again)
    assert [(row.method, row.sparsity) for row in summary.rows] == [("sgd", 0), ("sgd", 0.9), ("var", 0), ("var", 0.9)]
    assert len(summary.densities) == 4
    assert summary.command == "trimtab curvature DIR --sparsities 0,0.9 " + " ".join(QUICK) + " --out DIR"
    assert "<script>" in (tmp_path / "curvature.html").read_text()


def test_a_landscape_has_the_loss_in_its_middle(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.studies.curvature.measuring.LANDSCAPE_POINTS", 3)
    words = ["curvature", str(runs / "sgd"), "--sparsities", "0", "--density-probes", "0", "--landscape", *QUICK]
    assert main([*words, "--out", str(tmp_path)]) == 0
    summary = CurvatureSummary.model_validate_json((tmp_path / "curvature.json").read_text())
    assert len(summary.landscapes) == 1
    assert summary.landscapes[0].losses[1][1] == summary.landscapes[0].centre
    assert summary.landscapes[0].centre == pytest.approx(summary.rows[0].loss)
    assert summary.densities == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sparsities", "0,1.5"], "sparsities"),
        (["--sparsities", "0.5,0.5"], "twice"),
        (["--density-probes", "1"], "at least 2"),
        (["--examples", "100000"], "training images here"),
    ],
)
def test_bad_input(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["curvature", str(runs / "sgd"), *words, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "curvature.json").exists()


def test_unfinished_and_doubled_runs_are_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["curvature", str(tmp_path / "empty")]) == 2
    twin = tmp_path / "twin"
    twin.mkdir()
    for file in (runs / "sgd" / "seed0").iterdir():
        if file.is_file():
            (twin / file.name).write_bytes(file.read_bytes())
    assert main(["curvature", str(runs / "sgd"), str(twin), *QUICK, "--out", str(tmp_path / "o")]) == 2
    assert "occurs in several" in capsys.readouterr().err


def test_a_study_that_is_not_whole_is_measured_and_says_so(runs: Path, tmp_path: Path) -> None:
    begun = RunFolder(tmp_path / "begun")
    begun.open(RunFolder(runs / "sgd" / "seed0").recipe.with_settings({"seed": 7}))
    finished, missing = finished_runs([runs / "sgd", tmp_path], tmp_path)
    assert all(run.finished for run in finished)
    assert [(one.seed, one.why, one.folder) for one in missing] == [(7, "unfinished", "begun")]


def test_a_damaged_measurement_is_named(runs: Path, tmp_path: Path) -> None:
    run = MeasuredRun(RunFolder(runs / "sgd" / "seed0"), SETTINGS, tmp_path, "validation")
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "sgd-seed0-0.json").write_text("{")
    with pytest.raises(ValueError, match=r"sgd-seed0-0\.json is damaged"):
        run.measure(0.0, lambda text: None)
