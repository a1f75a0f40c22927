"""Shared runs: what goes out, what comes back, and what does not."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import trimtab
from tests.runs.tiny import tiny_recipe
from trimtab.cli import main
from trimtab.deploy import load_sparse
from trimtab.runs.run_folder import RunFolder
from trimtab.studies import prune_run, pull, push
from trimtab.studies.pruned_network import pruned_network
from trimtab.studies.sharing import FILES


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    trimtab.studies.train(tiny_recipe(epochs=1), folder)
    prune_run(RunFolder(folder))
    return folder


def test_a_run_goes_out_and_comes_back(run: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    assert push(run, str(tmp_path / "shared")) == str(tmp_path / "shared")
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before
    back = pull(str(tmp_path / "shared"), tmp_path / "back")
    assert back.finished
    assert back.recipe == RunFolder(run).recipe
    assert (back.model_file).read_bytes() == before["model.safetensors"]
    assert back.metrics() == RunFolder(run).metrics()
    assert not back.checkpoint_file.exists()
    assert prune_run(back, split="validation").rows


def test_the_pruned_network_is_the_one_that_export_gives(run: Path, tmp_path: Path) -> None:
    push(run, str(tmp_path / "shared"), sparsity=0.8)
    expected = pruned_network(RunFolder(run), 0.8).model.state_dict()
    got = load_sparse(tmp_path / "shared" / "pruned-80.safetensors")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_a_dense_network_is_shared_alone(run: Path, tmp_path: Path) -> None:
    push(run, str(tmp_path / "shared"), sparsity=0)
    assert not list((tmp_path / "shared").glob("pruned-*"))
    assert json.loads((tmp_path / "shared" / "config.json").read_text())["sparse_file"] is None


@pytest.mark.parametrize("sparsity", [0.9, 0])
def test_the_card_is_what_the_hub_reads_and_its_code_runs(
    run: Path, tmp_path: Path, sparsity: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, str(tmp_path / "shared"), sparsity=sparsity, licence="apache-2.0")
    text = (tmp_path / "shared" / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "trimtab"
    rows = {
        (row.sparsity, row.recalibrated): row.accuracy
        for row in prune_run(RunFolder(run)).rows
        if row.score == "magnitude"
    }
    values = [metric["value"] for metric in head["model-index"][0]["results"][0]["metrics"]]
    wanted = [rows[0.0, False]]
    if sparsity:
        wanted.append(next(value for (at, again), value in rows.items() if again and abs(at - 0.9) < 1e-3))
    assert values == pytest.approx(wanted, abs=1e-6)
    assert f"| {100 * rows[0.0, False]:.2f} |" in text
    monkeypatch.chdir(tmp_path / "shared")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(block, names)
    expected = load_file("model.safetensors") if sparsity == 0 else load_sparse("pruned-90.safetensors")
    assert all(torch.equal(expected[name], tensor) for name, tensor in names["network"].state_dict().items())
    hub = pytest.importorskip("huggingface_hub")
    assert hub.ModelCardData(**head).to_dict()["library_name"] == "trimtab"


def test_no_path_of_this_machine_goes_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trimtab.studies.train(tiny_recipe(epochs=1, data__root=str(tmp_path / "secret")), folder)
    push(folder, str(tmp_path / "shared"), sparsity=0)
    for file in (tmp_path / "shared").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name


def test_only_known_files_are_taken(run: Path, tmp_path: Path) -> None:
    push(run, str(tmp_path / "shared"))
    (tmp_path / "shared" / "evil.py").write_text("raise SystemExit")
    (tmp_path / "outside").write_text("not yours")
    (tmp_path / "shared" / "pruning-validation.json").symlink_to(tmp_path / "outside")
    back = pull(str(tmp_path / "shared"), tmp_path / "back")
    assert not (back.path / "evil.py").exists()
    assert not (back.path / "pruning-validation.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["push", "RUN", "--to", "hf:me/net"], "write hf://USER/NAME"),
        (["push", "RUN", "--to", "hf://me/net@v1"], "a push takes no revision"),
        (["push", "RUN", "--to", "FULL"], "is not empty"),
        (["push", "RUN", "--to", "new", "--sparsity", "1.5"], "sparsity must be in [0, 1), got 1.5"),
        (["push", "FULL", "--to", "new"], "is not a finished run"),
        (["pull", "FULL", "--out", "new"], "holds no run that `trimtab push` shared"),
        (["pull", "nowhere", "--out", "new"], "holds no run that `trimtab push` shared"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    run: Path,
    tmp_path: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    assert main([{"RUN": str(run), "FULL": "full"}.get(word, word) for word in words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not (tmp_path / "new").exists()


def test_the_hub_gets_the_folder_and_gives_it_back(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for huggingface_hub with the signatures of its calls: nothing goes over the network."""
    store: dict[str, bytes] = {}
    asked: list[Any] = []

    class HfApi:
        def __init__(self, *, library_name: str, library_version: str) -> None: ...

        def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
            asked.append((repo_id, private))

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
            store.update({file.name: file.read_bytes() for file in folder_path.iterdir()})
            return f"https://hub/{repo_id}/commit/1"

    def snapshot_download(
        repo_id: str, *, revision: str | None, local_dir: Path, allow_patterns: list[str], library_name: str
    ) -> None:
        asked.append((repo_id, revision))
        assert allow_patterns == list(FILES)
        for name, content in store.items():
            (local_dir / name).write_bytes(content)

    fake = SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)  # type: ignore[arg-type]
    assert push(run, "hf://me/net") == "https://hub/me/net/commit/1"
    back = pull("hf://me/net@v1", tmp_path / "back")
    assert asked == [("me/net", True), ("me/net", "v1")]
    assert back.model_file.read_bytes() == (run / "model.safetensors").read_bytes()


def test_the_calls_are_those_of_the_library() -> None:
    inspect = pytest.importorskip("inspect")
    hub = pytest.importorskip("huggingface_hub")
    wanted = {"repo_type", "private", "exist_ok"}
    assert wanted <= set(inspect.signature(hub.HfApi.create_repo).parameters)
    assert {"repo_id", "folder_path", "commit_message"} <= set(inspect.signature(hub.HfApi.upload_folder).parameters)
    assert {"revision", "local_dir", "allow_patterns", "library_name"} <= set(
        inspect.signature(hub.snapshot_download).parameters
    )
