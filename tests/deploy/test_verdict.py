"""The table of what got smaller and faster says what was measured, and nothing better."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from trimtab.deploy import Comparison, save_sparse, timing, verdict
from trimtab.deploy import sparse_linear as sparse_linear_module
from trimtab.observe import summary

VERDICT = importlib.import_module("trimtab.deploy.verdict")


def net(sparsity: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 16))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.masked_fill_(torch.rand_like(parameter) < sparsity, 0.0)
    return model


def test_rows_of_a_pruned_network(tmp_path: Path) -> None:
    model, x = net(0.9), torch.randn(4, 1, 8, 8)
    before = copy.deepcopy(model.state_dict())
    stored, work = save_sparse(model, tmp_path / "f", with_gzip=True), summary(model, x)
    rows = {row.what: row for row in verdict(model, x, stored=stored, work=work, budget=0.01)}
    assert list(rows) == [
        "sparse file",
        "gzip instead",
        "weights in memory",
        "multiply-adds",
        "time at batch 4, dense layers",
        "time at batch 4, sparse Linear",
    ]
    assert rows["sparse file"].ratio == stored.ratio
    assert rows["sparse file"].verdict.startswith("The file is smaller")
    assert rows["gzip instead"].ratio == stored.dense_bytes / stored.gzip_bytes
    assert rows["weights in memory"].ratio == 1.0
    assert rows["multiply-adds"].ratio == work.speed_up
    assert rows["multiply-adds"].verdict.startswith("Fewer on paper only")
    assert "Convolutions are left" in rows["time at batch 4, sparse Linear"].verdict
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_dense_network_gains_nothing(tmp_path: Path) -> None:
    model = net(0.0)
    rows = {
        row.what: row
        for row in verdict(model, torch.randn(2, 1, 8, 8), stored=save_sparse(model, tmp_path / "f"), budget=0.01)
    }
    assert rows["sparse file"].verdict == "The file is not smaller: too few zeros."
    assert rows["multiply-adds"].verdict.startswith("Not fewer")
    assert rows["multiply-adds"].ratio == 1.0


@pytest.mark.parametrize(
    ("ratio", "says"), [(2.0, "1 of 1 Linear layers run faster"), (0.4, "the best Linear reaches 0.40")]
)
def test_sparse_linear_row(monkeypatch: pytest.MonkeyPatch, ratio: float, says: str) -> None:
    monkeypatch.setattr(sparse_linear_module, "compare_linear", lambda *_: Comparison(ratio, 1.0))
    monkeypatch.setattr(sparse_linear_module, "compare_twice", lambda *_, **__: Comparison(1.0, 1.0))
    monkeypatch.setattr(VERDICT, "interleaved", lambda calls, _: [1.0] * len(calls))
    row = verdict(net(0.9), torch.randn(2, 1, 8, 8), budget=0.01)[-1]
    assert says in row.verdict
    if ratio > 1:
        assert "the whole model does not gain" in row.verdict
    else:
        assert row.verdict.startswith("Nothing gets faster")


def test_the_ratio_is_that_of_the_two_times_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios 2, 3, 4, 0.5, 2.5: the median is that of the pair (10, 4); the columns' own medians, 8 and 3, give 2.67."""
    seconds = iter([1e-3, 1e-3, 2.0, 1.0, 9.0, 3.0, 8.0, 2.0, 4.0, 8.0, 10.0, 4.0])
    monkeypatch.setattr(timing, "_seconds", lambda call, times: next(seconds))
    found = timing.compare(lambda: None, lambda: None, budget=0.0)
    assert (found.before, found.after, found.ratio) == (10.0, 4.0, 2.5)


def test_one_number_for_one_time_and_ratios_of_the_numbers_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_linear_module, "compare_linear", lambda *_: Comparison(2.0, 1.0))
    monkeypatch.setattr(VERDICT, "interleaved", lambda calls, _: [0.0075, 0.0030, 0.0020])
    dense, sparse = verdict(net(0.9), torch.randn(2, 1, 8, 8), budget=0.01)[-2:]
    assert (dense.before, dense.after, dense.ratio) == ("7.5 ms", "3 ms", 2.5)
    assert (sparse.before, sparse.after, sparse.ratio) == ("3 ms", "2 ms", 1.5)


def test_every_call_has_its_turn_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1e-3, 1e-3, 2.0, 1.0, 9.0, 3.0, 8.0, 2.0, 4.0, 8.0, 10.0, 4.0])
    monkeypatch.setattr(timing, "_seconds", lambda call, times: next(seconds))
    assert timing.interleaved([lambda: None, lambda: None], budget=0.0) == [8.0, 3.0]


def test_without_linear_layers() -> None:
    row = verdict(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.randn(2, 1, 8, 8), budget=0.01)[-1]
    assert "there is no Linear layer to replace" in row.verdict
