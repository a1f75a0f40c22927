"""Which layers are replaced and why the others are left. No test asserts a time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trimtab.deploy import Comparison, CsrLinear, break_even, measure_linear, sparse_linear, to_sparse_linear
from trimtab.deploy.latency import least_paying
from trimtab.deploy.timing import compare, compare_twice


def always(ratio: float):
    def measured(dense: nn.Linear, sparse: CsrLinear, batch: int, budget: float) -> Comparison:
        return Comparison(ratio, 1.0)

    return measured


@pytest.fixture
def _sparse_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_linear, "compare_linear", always(2.0))


class Zoo(nn.Module):
    """A layer of each kind that must be told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 1)
        self.plain = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8)
        self.same = self.twice
        self.tied_a, self.tied_b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied_b.weight = self.tied_a.weight
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.weighted = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.unused = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.mT).mT
        x = self.same(self.twice(self.plain(x)))
        x = self.tied_b(self.tied_a(self.drop(x)))
        return self.weighted(self.layer(self.attention(x, x, x)[0]))


@pytest.mark.usefixtures("_sparse_wins")
def test_kinds_of_layers() -> None:
    torch.manual_seed(0)
    model, x = Zoo(), torch.randn(3, 5, 8)
    fast, report = to_sparse_linear(model, x, budget=0.01)
    verdicts = {row.name: row.verdict for row in report.rows}
    assert {row.name for row in report.rows if row.replaced} == {"plain", "twice"}
    assert isinstance(fast.twice, CsrLinear)
    assert fast.same is fast.twice
    assert verdicts["plain"] == "replaced: 2.00 times the speed of dense at 15 rows"
    assert "no sparse convolution" in verdicts["conv"]
    assert "shared" in verdicts["tied_a"]
    assert "MultiheadAttention reads" in verdicts["attention.out_proj"]
    assert "TransformerEncoderLayer reads" in verdicts["layer.linear1"]
    assert "not a plain Linear" in verdicts["weighted"]
    assert "does not reach" in verdicts["unused"]
    assert report.model is not None
    assert "whole model" in str(report)
    torch.testing.assert_close(fast(x), model.eval()(x))


@pytest.mark.usefixtures("_sparse_wins")
def test_copy_or_in_place() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).train()
    before = copy.deepcopy(model.state_dict())
    copied, _ = to_sparse_linear(model, torch.randn(4, 8), budget=0.01)
    assert type(model[0]) is nn.Linear
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(copied[0], CsrLinear)
    assert not copied.training
    same, _ = to_sparse_linear(model, torch.randn(4, 8), inplace=True, budget=0.01)
    assert same is model
    assert isinstance(model[0], CsrLinear)
    alone, _ = to_sparse_linear(nn.Linear(8, 8), torch.randn(4, 8), budget=0.01)
    assert isinstance(alone, CsrLinear)


def test_nothing_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_linear, "compare_linear", always(0.5))
    model = nn.Sequential(nn.Linear(8, 8))
    same, report = to_sparse_linear(model, torch.randn(4, 8))
    assert report.replaced == 0
    assert report.rows[0].verdict == "left: sparse would run at 0.50 times the speed of dense at 4 rows"
    assert "nothing will be faster" in str(report)
    assert same is not model


def test_min_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_linear, "compare_linear", always(1.4))
    model, x = nn.Linear(8, 8), torch.randn(4, 8)
    assert to_sparse_linear(model, x, min_gain=1.5, budget=0.01)[1].replaced == 0
    assert to_sparse_linear(model, x, min_gain=1.3, budget=0.01)[1].replaced == 1
    with pytest.raises(ValueError, match="min_gain must be finite and above 0"):
        to_sparse_linear(model, x, min_gain=0.0)


@pytest.mark.usefixtures("_sparse_wins")
def test_disagreement_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CsrLinear, "forward", lambda self, x: torch.zeros(*x.shape[:-1], self.out_features))
    with pytest.raises(RuntimeError, match="does not agree"):
        to_sparse_linear(nn.Linear(8, 8), torch.randn(4, 8), budget=0.01)


def test_half_precision_is_left() -> None:
    _, report = to_sparse_linear(nn.Linear(8, 8).bfloat16(), torch.randn(4, 8).bfloat16())
    assert "no sparse kernel is used for torch.bfloat16" in report.rows[0].verdict


def test_measuring_leaves_the_random_state_and_checks_its_input() -> None:
    before = torch.get_rng_state()
    found = break_even(32, 16, 2, sparsities=(0.9, 0.5), budget=0.001)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(found.ratios) == [0.5, 0.9]
    assert all(ratio > 0 for ratio in found.ratios.values())
    assert found.sparsity == least_paying(found.ratios)
    for sparsity in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\)"):
            measure_linear(8, 8, sparsity, 1)
    with pytest.raises(ValueError, match="1 or more"):
        measure_linear(8, 0, 0.5, 1)
    with pytest.raises(ValueError, match="at least one"):
        break_even(8, 8, 1, sparsities=())


def test_measured_layer_has_the_sparsity_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.deploy import latency

    seen: list[CsrLinear] = []

    def keep(dense: nn.Linear, sparse: CsrLinear, batch: int, budget: float) -> Comparison:
        seen.append(sparse)
        return Comparison(1.0, 1.0)

    monkeypatch.setattr(latency, "compare_linear", keep)
    measure_linear(40, 25, 0.9, 1)
    assert seen[0].values.numel() == 100


def test_least_paying() -> None:
    assert least_paying({0.5: 0.5, 0.9: 0.9}) is None
    assert least_paying({0.5: 1.5, 0.9: 2.0}) == 0.5
    assert least_paying({0.5: 1.5, 0.7: 0.9, 0.9: 2.0}) == 0.9
    assert least_paying({0.5: 1.0}) is None


def test_comparison_calls_both_in_turn() -> None:
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        sum(range(100_000))  # long enough for one call a measurement

    found = compare(lambda: call("a"), lambda: call("b"), budget=0.0)
    turns = "".join(order[6:]).replace("aa", "a").replace("bb", "b")
    assert "abab" in turns
    assert found.before > 0
    assert found.after > 0


def test_a_gain_is_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.deploy import timing

    results = iter([3.0, 0.9, 0.8, 7.0])
    monkeypatch.setattr(timing, "compare", lambda *_: Comparison(next(results), 1.0))
    assert compare_twice(lambda: None, lambda: None).ratio == 0.9
    assert compare_twice(lambda: None, lambda: None).ratio == 0.8
    assert next(results) == 7.0


class ReadsWeight(nn.Module):
    """Two of three layers are read by other code, as language models do to learn a dtype or to tie by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, *, scale: Tensor | None = None) -> Tensor:
        x = self.third(self.second(self.first(x).to(self.second.weight.dtype)))
        return nn.functional.linear(x, self.first.weight * (1 if scale is None else scale))


@pytest.mark.usefixtures("_sparse_wins")
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_layers_whose_weight_other_code_reads_stay(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = ReadsWeight().eval()
    x = torch.randn(3, 8)
    fast, report = to_sparse_linear(wrap(net), {"x": x, "scale": torch.tensor(2.0)}, budget=0.001)
    verdicts = {row.name: row.verdict for row in report.rows}
    read = "left: other code reads its weight, which a sparse layer does not hold"
    assert verdicts["first"] == verdicts["second"] == read
    assert verdicts["third"].startswith("replaced")
    torch.testing.assert_close(fast(x, scale=torch.tensor(2.0)), net(x, scale=torch.tensor(2.0)))
    assert [type(module) for module in net.children()] == [nn.Linear] * 3
    assert not {"rows", "weight_was_read", "_inside"} & set(vars(net.first))


@pytest.mark.usefixtures("_sparse_wins")
def test_a_call_by_keyword_counts_as_a_call() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(input=x)
            return out

    fast, report = to_sparse_linear(Named(), torch.ones(5, 4), budget=0.001)
    assert (report.rows[0].batch, report.replaced) == (5, 1)
    assert fast(torch.ones(2, 4)).shape == (2, 4)


@pytest.mark.usefixtures("_sparse_wins")
def test_a_layer_that_is_wrapped_itself_stays() -> None:
    net = nn.Sequential(torch.compile(nn.Linear(4, 4), backend="eager"), nn.Linear(4, 4))
    _, report = to_sparse_linear(net, torch.ones(5, 4), budget=0.001)
    assert [(row.name, row.replaced) for row in report.rows] == [("0", False), ("1", True)]
    assert report.rows[0].verdict == "left: OptimizedModule wraps it"


@pytest.mark.usefixtures("_sparse_wins")
def test_an_example_that_fails_leaves_the_layers_as_they_were() -> None:
    net = ReadsWeight()
    with pytest.raises(RuntimeError):
        to_sparse_linear(net, torch.ones(2, 5))
    assert type(net.first) is nn.Linear
    assert "rows" not in vars(net.first)
