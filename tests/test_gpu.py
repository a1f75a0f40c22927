"""The script for the GPU: its dry run, its data, its wheels, its archives, and the pages that it fills."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "benchmarks" / "gpu"
MOST = 16 * 2**20


@pytest.fixture
def script(monkeypatch):
    """A function that imports one of the scripts, as they import each other."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(SCRIPTS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=1500)


def checked(out: Path) -> dict:
    """The results, after looking at what lies beside them."""
    files = sorted(file.name for file in out.iterdir())
    assert "results.json" in files
    assert len(files) <= 5
    assert all(file.is_file() and file.stat().st_size < MOST for file in out.iterdir())
    return json.loads((out / "results.json").read_text())


def problems(part: dict) -> list[str]:
    return [row["question"] for row in part["rows"] if "error" in row or "missing" in row]


def test_the_dry_run_does_every_part(tmp_path):
    """On the CPU at toy size: all parts end well, no row is an error, every bar is there and unjudged."""
    ended = run("--dry", "--minutes", "30", "--out", str(tmp_path / "out"))
    results = checked(tmp_path / "out")
    assert {name: (part["status"], problems(part)) for name, part in results["parts"].items()} == {
        name: ("done", []) for name in ("suite", "speed", "study", "medclm")
    }, ended.stdout + ended.stderr
    assert ended.returncode == 0
    assert results["dry"]
    assert results["machine"]["torch"]
    bars = {row["bar"] for row in results["parts"]["speed"]["rows"] if "bar" in row}
    assert bars == {"<= 1.05", "<= 1.02", "== 0", "<= 2.05", "<= 1.15", ">= 0.6", ">= 0.4", "<= 3"}
    assert all(row["met"] is None for part in results["parts"].values() for row in part["rows"] if "bar" in row)
    with tarfile.open(tmp_path / "out" / "study.tar.gz") as archive:
        names = archive.getnames()
    assert {"study/summary.json", "study/report.html", "study/runs/l1+cram+/seed0/pruning-test.json"} <= set(names)
    assert not [name for name in names if name.endswith((".safetensors", ".npz"))]


def test_without_a_gpu_each_part_says_so_and_nothing_is_measured(tmp_path):
    ended = run("--minutes", "1", "--out", str(tmp_path), CUDA_VISIBLE_DEVICES="")
    parts = checked(tmp_path)["parts"]
    assert ended.returncode == 1
    assert {part["status"] for part in parts.values()} == {"not run: torch sees no GPU; --dry runs on the CPU"}


def test_a_machine_without_torch_is_reported(tmp_path):
    """A torch that cannot be imported, which is what a machine without it looks like."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    )
    ended = run("--dry", "--minutes", "1", "--out", str(tmp_path / "out"), PYTHONPATH=str(tmp_path / "broken"))
    parts = checked(tmp_path / "out")["parts"]
    assert ended.returncode == 1
    assert {part["status"] for part in parts.values()} == {"not run: ModuleNotFoundError: No module named 'torch'"}


def part_script(folder: Path, text: str) -> None:
    """A folder of scripts whose part `speed` is `text`."""
    for file in SCRIPTS.glob("*.py"):
        (folder / file.name).write_text(file.read_text())
    (folder / "speed.py").write_text("from part import start\n" + text + '\nstart("speed", main)\n')
    (folder / "device.py").write_text('print(\'{"torch": "none", "gpu": "a toy"}\')')


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("    import time; time.sleep(60)", "stopped at its limit"),
        ("    import os; os.kill(os.getpid(), 9)", "failed with exit code -9"),
        ("    raise RuntimeError('no')", "failed with exit code 1"),
        ("    import surely_not_there", "missing: surely_not_there"),
    ],
)
def test_a_part_that_ends_badly_keeps_its_rows(body, status, tmp_path, script, monkeypatch):
    (tmp_path / "benchmarks" / "gpu").mkdir(parents=True)
    part_script(tmp_path / "benchmarks" / "gpu", f"def main(part):\n    part.row('first', 1.5, '<= 2')\n{body}")
    runner = script("run")
    monkeypatch.setattr(runner, "HERE", tmp_path / "benchmarks" / "gpu")
    monkeypatch.setattr(runner, "GRACE", 0.5)
    (tmp_path / "out").mkdir()
    (tmp_path / "work").mkdir()
    one = runner.Run(tmp_path / "out", 1.0, dry=False)
    runner.run_part(one, "speed", 5.0, tmp_path / "work", [], dict(os.environ))
    part = checked(tmp_path / "out")["parts"]["speed"]
    assert part["status"] == status
    assert part["rows"][0] == {"question": "first", "value": 1.5, "bar": "<= 2", "met": True}
    assert (tmp_path / "out" / "speed.tar.gz").is_file()


def test_a_group_that_fails_costs_itself_alone(script, tmp_path):
    part = script("part").Part("toy", tmp_path, 100.0)

    def bad(_):
        raise ValueError("bad luck")

    def lacking(_):
        import surely_not_there  # noqa: F401

    part.group("first", bad)
    part.group("second", lacking)
    part.group("third", "nowhere:at_all")
    part.group("fourth", lambda one: one.row("fine", 3.0, ">= 4"))
    part.group("fifth", bad, least=1000.0)
    rows = script("packing").rows_of(tmp_path)
    assert [set(row) - {"question"} for row in rows] == [
        {"error"}, {"missing"}, {"missing"}, {"value", "bar", "met"}, {"left_out"}
    ]  # fmt: skip
    assert rows[0]["error"] == "ValueError: bad luck"
    assert rows[3]["met"] is False


def test_a_line_cut_short_by_a_kill_is_left_out(script, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "a"}\n{"quest')
    assert script("packing").rows_of(tmp_path) == [{"question": "a"}]


def test_an_archive_stays_below_its_limit_and_says_what_it_left(script, tmp_path):
    folder = tmp_path / "part"
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "small.json").write_text("{}")
    (folder / "large.bin").write_bytes(os.urandom(5000))
    (folder / "model.safetensors").write_bytes(b"w" * 10)
    assert script("packing").pack(folder, tmp_path / "part.tar.gz", most=4000) == ["part/large.bin"]
    with tarfile.open(tmp_path / "part.tar.gz") as archive:
        assert archive.getnames() == ["part/runs/small.json"]


def test_images_are_packed_bit_for_bit_and_read_as_cifar10(script, tmp_path):
    """Noise and smooth pictures; the expanded file is one that the data set's own reader takes."""
    data = script("data")
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    y, x = np.mgrid[:32, :32]
    smooth = np.stack([np.stack([y * 4, x * 7, y + x], -1) + k for k in range(20)]).astype(np.uint8)
    for images in (noise, smooth):
        assert np.array_equal(data.unpacked(data.packed(images), images.shape), images)
    assert len(data.packed(smooth)) < smooth.size / 20
    labels = np.arange(20, dtype=np.uint8) % 10
    arrays = {"train": data.packed(noise), "train_labels": labels, "test": data.packed(smooth), "test_labels": labels}
    np.savez(tmp_path / "small.npz", **arrays)
    assert data.expand(tmp_path / "small.npz", tmp_path / "plain.npz") == (20, 20)
    from trimtab import datasets

    found = datasets.load("cifar10", root=tmp_path / "plain.npz", validation=0.5)
    assert np.array_equal(found.test.images.permute(0, 2, 3, 1).numpy(), smooth)


def wheel(folder: Path, name: str, content: str) -> None:
    import zipfile

    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr(content, "value = 1\n")


def test_only_missing_packages_come_from_wheels(script, tmp_path):
    wheels = script("wheels")
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "surely_not_there-1.0-py3-none-any.whl", "surely_not_there.py")
    wheel(tmp_path / "wheels", "numpy-0.1-py3-none-any.whl", "numpy.py")
    wheel(tmp_path / "wheels", "of_another-1.0-cp39-cp39-manylinux_2_17_x86_64.whl", "of_another.py")
    assert wheels.unpack_missing(tmp_path / "wheels", tmp_path / "path") == ["surely-not-there"]
    assert [file.name for file in (tmp_path / "path").iterdir()] == ["surely_not_there.py"]
    assert wheels.fits(Path("safetensors-0.8.0-cp38-abi3-manylinux_2_17_x86_64.whl"), (3, 12), "x86_64")
    assert not wheels.fits(Path("safetensors-0.8.0-cp38-abi3-macosx_11_0_arm64.whl"), (3, 12), "x86_64")


def of_a_gpu() -> dict:
    rows = [
        {"question": "step with VAR | plain", "value": 1.031, "bar": "<= 1.05", "met": True},
        {"question": "step with SAM", "value": 2.2, "bar": "<= 2.05", "met": False},
        {"question": "copy, GB/s", "value": 2900.0},
    ]
    study = [
        {"question": "l1: test accuracy by sparsity, recalibrated", "accuracy": {"0": 0.91, "0.98": 0.4}, "epochs": 30}
    ]
    suite = [{"question": "tests passed", "value": 150.0, "failed": 1, "errors": 0, "skipped": 2}]
    parts = {"suite": suite, "speed": rows, "study": study, "medclm": []}
    return {
        "dry": False, "started": "2026-01-02T03:04:05+00:00",
        "machine": {"gpu": "A GPU", "torch": "2.13.0", "cuda": "13.0", "driver_version": "600.1"},
        "parts": {n: {"status": "done" if n != "medclm" else "missing: peft", "rows": r} for n, r in parts.items()},
    }  # fmt: skip


def test_the_pages_hold_what_the_script_writes(script):
    readme: ModuleType = script("readme")
    results = readme.load()
    for page, text in (("README.md", readme.section(results)), ("benchmarks/README.md", readme.table(results))):
        content = (ROOT / page).read_text(encoding="utf-8")
        assert content == readme.filled(content, text), f"{page}: run python benchmarks/gpu/readme.py"


def test_results_of_a_gpu_become_tables(script):
    readme = script("readme")
    text = readme.section(of_a_gpu())
    assert "A GPU, driver 600.1, torch 2.13.0, CUDA 13.0, 2026-01-02" in text
    assert "150 passed, 1 failed, 2 skipped" in text
    assert "| step with VAR \\| plain | 1.03 | <= 1.05 | met |" in text
    assert "| step with SAM | 2.2 | <= 2.05 | **missed** |" in text
    assert "copy" not in text
    assert "| l1 | 91.0 | 40.0 |" in text
    assert "Not complete: medclm (missing: peft)." in text
    assert "| speed | copy, GB/s | 2.9e+03 |" in readme.table(of_a_gpu())
    assert "Not measured yet" in readme.section(None)


@pytest.mark.parametrize("change", [{"dry": True}, {"machine": {"gpu": None}}])
def test_results_that_are_not_of_a_gpu_are_refused(script, change):
    with pytest.raises(ValueError, match="not of a GPU"):
        script("readme").measured(of_a_gpu() | change)


@pytest.mark.slow
def test_runs_are_timed_side_by_side(script, tmp_path):
    """Two processes on the CPU: the first alone, then both."""
    study, data = script("study"), script("data")
    data.drawn(tmp_path / "plain.npz", train=200)
    part = script("part").Part("study", tmp_path, 300.0, dry=True)
    base = study.recipe(part, tmp_path / "plain.npz").with_settings({"data.batch_size": 4})
    jobs, seconds = study.side_by_side(part, base, processes=2, steps=4, patience=400.0)
    (row,) = script("packing").rows_of(tmp_path)
    assert jobs == (2 if row["value"] > 1.05 else 1)
    assert seconds == pytest.approx(row["step_ms_side_by_side" if jobs == 2 else "step_ms"] / 1e3, rel=1e-4)


@pytest.mark.slow
def test_a_study_whose_time_is_up_keeps_what_it_has(script, tmp_path, monkeypatch):
    """All runs at a length that none reaches: no report, a row that says so, and the part ends."""
    study = script("study")
    part = script("part").Part("study", tmp_path, 60.0, dry=True)
    longer = study.recipe
    monkeypatch.setattr(study, "recipe", lambda *given: longer(*given).with_settings({"epochs": 10**4}))
    monkeypatch.setattr(type(part), "left", property(lambda self: -1.0))
    study.main(part)
    (row,) = script("packing").rows_of(tmp_path)
    assert row["left_out"] == "time was up with 0 of 2 runs finished"


@pytest.mark.slow
def test_the_whole_study_at_toy_size(script, tmp_path, monkeypatch):
    """All seven runs from the packed images, as on a GPU but for network, epochs and the measured step."""
    study, data = script("study"), script("data")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(60, dtype=np.uint8) % 10
    arrays = {"train": data.packed(images), "train_labels": labels, "test": data.packed(images[:20])}
    np.savez(tmp_path / "data.npz", **arrays, test_labels=labels[:20])
    part = script("part").Part("study", tmp_path / "study", 500.0, data=tmp_path / "data.npz")
    toy = script("part").Part("study", tmp_path / "toy", 500.0, dry=True)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # for the workers
    recipe = study.recipe
    monkeypatch.setattr(study, "recipe", lambda part, file: recipe(toy, file))
    monkeypatch.setattr(study, "EPOCHS", 1)
    monkeypatch.setattr(study, "LEAST_EPOCHS", 1)

    def broken(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(study, "side_by_side", broken)
    study.main(part)
    rows = script("packing").rows_of(tmp_path / "study")
    assert [row for row in rows if "error" in row] == [{"question": "side by side", "error": "RuntimeError: no memory"}]
    methods = {row["question"].partition(":")[0] for row in rows if "accuracy" in row}
    assert methods == {
        "sgd[sgd.weight_decay=0.0005]", "sgd[sgd.weight_decay=0.005]", "l1", "cram+", "l1+cram+",
        "var[sgd.weight_decay=0.0005,var.strength=1e-05]", "var[sgd.weight_decay=0.005,var.strength=0.0001]",
    }  # fmt: skip
    assert all(row["epochs"] == 1 for row in rows if "accuracy" in row)
    summary = json.loads((tmp_path / "study" / "summary.json").read_text())
    assert len(summary["runs"]) == 7
    assert (tmp_path / "study" / "report.html").is_file()
    kept = script("packing").pack(tmp_path / "study", tmp_path / "study.tar.gz")
    assert not kept
    with tarfile.open(tmp_path / "study.tar.gz") as archive:
        archive.extractall(tmp_path / "home", filter="data")
    from trimtab.report import render
    from trimtab.studies import Summary

    home = Summary.read(tmp_path / "home" / "study" / "summary.json")  # the weights stayed behind, the figures did not
    assert render(home, tmp_path / "report.html").is_file()
