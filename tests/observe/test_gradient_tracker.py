"""GradientTracker: every statistic against NumPy, which rows there are, resume, and that it changes nothing."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trimtab
from tests.observe.oracle import assert_row, expected
from trimtab.gradients import Autoscale, Centralize, ClipNorm
from trimtab.observe import GradientTracker, read_table
from trimtab.observe.quantities import STATISTICS
from trimtab.parameters import Rule


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 5)
    )


def backward(net: nn.Module, factor: float = 1.0, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    (factor * net(torch.randn(8, 3, 6, 6, generator=generator)).square().mean()).backward()


def train(net: nn.Module, tracker: GradientTracker | None, steps: int = 3, *levers: Any, first: int = 0) -> Any:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    handle = trimtab.attach(optimizer, *([] if tracker is None else [tracker]), *levers, model=net)
    for step in range(first, first + steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        backward(net, seed=step)
        optimizer.step()
    return handle


def rows_of(tracker: GradientTracker) -> dict[tuple[int, str, str], dict[str, Any]]:
    return {(row["step"], row["kind"], row["layer"]): row for row in tracker.table().to_pylist()}


def set_gradients(optimizer: torch.optim.Optimizer, *gradients: Tensor | None) -> None:
    for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients, strict=True):
        parameter.grad = gradient


def of(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(5)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    return torch.optim.SGD(parameters, lr=0.5), parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_each_statistic_of_each_kind_equals_numpy(dtype: torch.dtype) -> None:
    optimizer, parameters = of((7, 9), (3, 2, 5, 5), dtype=dtype)
    tracker = GradientTracker(("gradients", "weights", "updates"))
    trimtab.attach(optimizer, tracker)
    for step in range(2):
        gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).to(dtype) for p in parameters]
        gradients[0][0] = 0
        gradients[1][0, 0] *= 1e-6
        weights = [parameter.detach().clone() for parameter in parameters]
        set_gradients(optimizer, *[gradient.clone() for gradient in gradients])
        optimizer.step()
        updates = [p.detach().double() - old.double() for p, old in zip(parameters, weights, strict=True)]
        rows = rows_of(tracker)
        for kind, tensors in (("gradients", gradients), ("weights", weights), ("updates", updates)):
            own = kind == "weights"
            for at, tensor in enumerate(tensors):
                assert_row(rows[step, kind, f"group0.{at}"], tensor, weights=own)
            joined = torch.cat([tensor.double().reshape(-1) for tensor in tensors])
            together = rows[step, kind, "(global)"]
            near = together.pop("near_zero")
            if own:
                assert near == sum(expected(tensor, weights=True)["near_zero"] for tensor in tensors)
            want = expected(joined, weights=own)
            for name in set(want) - {"near_zero"}:
                assert together[name] == pytest.approx(want[name], rel=1e-5, abs=1e-8), (kind, name)
            assert (together["magnitude_variance"] is None) is not own


def test_the_global_deviation_is_no_average_of_the_layers() -> None:
    optimizer, _ = of((1, 2), (1, 2))
    tracker = GradientTracker()
    trimtab.attach(optimizer, tracker)
    set_gradients(optimizer, torch.tensor([[1.0, 1.0]]), torch.tensor([[5.0, 5.0]]))
    optimizer.step()
    rows = rows_of(tracker)
    assert rows[0, "gradients", "group0.0"]["std"] == 0
    assert rows[0, "gradients", "(global)"]["std"] == 2


def test_channels_last_and_transposed_gradients() -> None:
    optimizer, _ = of((4, 3, 5, 5), (6, 4))
    tracker = GradientTracker(("gradients", "updates"))
    trimtab.attach(optimizer, tracker)
    first = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    second = torch.randn(4, 6).t()
    set_gradients(optimizer, first, second)
    optimizer.step()
    rows = rows_of(tracker)
    for at, gradient in enumerate((first, second)):
        assert_row(rows[0, "gradients", f"group0.{at}"], gradient)
        assert_row(rows[0, "updates", f"group0.{at}"], -0.5 * gradient, rel=1e-4)
        assert rows[0, "gradients", f"group0.{at}"]["n"] == gradient.numel()
        assert rows[0, "gradients", f"group0.{at}"]["std"] == pytest.approx(
            float(gradient.double().std(unbiased=False))
        )


def test_not_finite_gradients_are_counted_and_stay_with_their_layer() -> None:
    optimizer, _ = of((2, 3), (2, 2), (1, 4))
    tracker = GradientTracker(("gradients", "weights"))
    trimtab.attach(optimizer, tracker)
    bad = torch.tensor([[float("nan"), 1.0, 0.0], [float("inf"), -float("inf"), 2.0]])
    only_inf = torch.tensor([[1.0, 0.0, -float("inf"), 0.0]])
    good = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    set_gradients(optimizer, bad, good, only_inf)
    optimizer.step()
    rows = rows_of(tracker)
    assert_row(rows[0, "gradients", "group0.0"], bad)
    assert_row(rows[0, "gradients", "group0.1"], good)
    assert_row(rows[0, "gradients", "group0.2"], only_inf)
    together = rows[0, "gradients", "(global)"]
    assert (together["n"], together["nan"], together["inf"], together["zeros"]) == (14, 1, 3, 3)
    assert all(np.isnan(together[name]) for name in ("mean", "variance", "std", "norm", "max_abs"))
    set_gradients(optimizer, *[torch.ones_like(tensor) for tensor in (bad, good, only_inf)])
    optimizer.step()  # on weights that are NaN by now
    rows = rows_of(tracker)
    assert rows[1, "gradients", "(global)"]["std"] == 0
    assert rows[1, "weights", "group0.0"]["near_zero"] is None
    assert rows[1, "weights", "group0.1"]["near_zero"] is not None


def test_a_layer_without_a_gradient_or_frozen_has_no_row() -> None:
    optimizer, parameters = of((2, 2), (3, 3), (4, 4))
    parameters[2].requires_grad_(False)
    tracker = GradientTracker(("gradients", "weights", "updates"))
    trimtab.attach(optimizer, tracker)
    for present in (True, False, True):
        set_gradients(optimizer, torch.ones(2, 2), torch.full((3, 3), 2.0) if present else None, None)
        optimizer.step()
    rows = rows_of(tracker)
    for kind in ("gradients", "updates"):
        assert [key[2] for key in rows if key[:2] == (0, kind)] == ["group0.0", "group0.1", "(global)"]
        assert [key[2] for key in rows if key[:2] == (1, kind)] == ["group0.0", "(global)"]
    assert rows[1, "gradients", "(global)"]["n"] == 4
    assert rows[2, "gradients", "(global)"]["n"] == 13
    assert [key[2] for key in rows if key[:2] == (1, "weights")] == ["group0.0", "group0.1", "(global)"]
    # thawed: it appears
    parameters[2].requires_grad_(True)
    set_gradients(optimizer, None, None, torch.ones(4, 4))
    optimizer.step()
    assert [key[2] for key in rows_of(tracker) if key[:2] == (3, "gradients")] == ["group0.2", "(global)"]


def test_no_gradient_at_all_leaves_no_row() -> None:
    optimizer, _ = of((2, 2))
    tracker = GradientTracker()
    trimtab.attach(optimizer, tracker)
    optimizer.step()
    assert tracker.table().num_rows == 0
    assert tracker.step == 1


def test_rule_chooses_and_a_later_group_is_seen() -> None:
    net, late = network(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.named_parameters(), lr=0.1)
    tracker = GradientTracker(rule=Rule(min_ndim=1, exclude=("5.*",)))
    trimtab.attach(optimizer, tracker)
    backward(net)
    optimizer.step()
    assert [key[2] for key in rows_of(tracker)] == ["0.weight", "0.bias", "1.weight", "1.bias", "(global)"]
    optimizer.add_param_group({"params": [("late", late.weight)]})
    late(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert (1, "gradients", "late") in rows_of(tracker)
    nothing = torch.optim.SGD(late.parameters(), lr=0.1)
    trimtab.attach(nothing, GradientTracker(rule=Rule(min_ndim=5)))
    with pytest.raises(ValueError, match=r"min_ndim=5\) fits none of the optimizer's 2 parameters"):
        nothing.step()


@pytest.mark.parametrize(
    ("every", "logged"), [(1, [0, 1, 2, 3, 4, 5]), (4, [0, 4]), (lambda step: step in {1, 2, 5}, [1, 2, 5])]
)
def test_which_steps_are_logged(every: int | Callable[[int], bool], logged: list[int]) -> None:
    tracker = GradientTracker(("gradients", "updates"), every=every, capacity=2)
    train(network(), tracker, 6)
    assert sorted({key[0] for key in rows_of(tracker)}) == logged


@pytest.mark.parametrize("capacity", [1, 2, 100])
def test_capacity_changes_nothing_but_the_parts(tmp_path: Path, capacity: int) -> None:
    tracker = GradientTracker(("gradients", "weights"), folder=tmp_path, capacity=capacity)
    train(network(), tracker, 5)
    whole = GradientTracker(("gradients", "weights"))
    train(network(), whole, 5)
    assert tracker.table().equals(whole.table())
    assert read_table(tmp_path / "gradients.parquet").equals(whole.table())
    assert len(list((tmp_path / "gradients.parquet").iterdir())) == {1: 5, 2: 3, 100: 1}[capacity]
    assert whole.table().schema.metadata == {b"small_format": b"float16"}
    assert read_table(tmp_path / "gradients.parquet").schema == whole.table().schema


def test_a_place_in_the_order_decides_what_is_seen() -> None:
    net, (before, after) = network(), [GradientTracker(rule=Rule(min_ndim=0)) for _ in range(2)]
    train(net, before, 2, Centralize(), ClipNorm(1e-3), after)
    raw, changed = rows_of(before), rows_of(after)
    assert changed[0, "gradients", "(global)"]["norm"] == pytest.approx(1e-3, rel=0.01)
    assert raw[0, "gradients", "(global)"]["norm"] > 0.01


def test_signals_are_recorded_at_the_logged_steps() -> None:
    tracker, scale, other, clip = GradientTracker(every=2), Autoscale(), Autoscale("ema"), ClipNorm(0.1)
    tracker.watch(scale).watch([scale, other, clip, trimtab.penalties.L1(0.1)])
    alphas = []
    net = network()
    handle = train(net, tracker, 1, scale, other, clip)
    alphas.append(scale.signals()["alpha"].item())
    optimizer = handle.optimizers[0]
    for step in (1, 2):
        backward(net, 0.5, seed=step)
        optimizer.step()
        alphas.append(scale.signals()["alpha"].item())
    rows = tracker.signals_table().to_pylist()
    names = [row["name"] for row in rows if row["step"] == 0]
    assert {"alpha", "sigma", "Autoscale1.alpha"} <= set(names)
    assert len(set(names)) == len(names)
    assert [row["value"] for row in rows if row["name"] == "alpha"] == pytest.approx([alphas[0], alphas[2]])
    assert {row["step"] for row in rows} == {0, 2}


def test_statistics_not_asked_for_are_null() -> None:
    tracker = GradientTracker(("gradients", "weights"), statistics=("std", "near_zero"))
    train(network(), tracker, 1)
    whole = GradientTracker(("gradients", "weights"))
    train(network(), whole, 1)
    for key, row in rows_of(tracker).items():
        filled = {name for name in STATISTICS if row[name] is not None}
        assert filled == ({"std", "near_zero"} if key[1] == "weights" else {"std"})
        assert all(row[name] == rows_of(whole)[key][name] for name in filled)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn"])
def test_subnormal_is_of_the_named_format(name: str) -> None:
    optimizer, _ = of((1, 6))
    tracker = GradientTracker(small_format=name)
    trimtab.attach(optimizer, tracker)
    gradient = torch.tensor([[0.0, 1e-2, 1e-3, -1e-5, 1e-39, 1.0]])
    set_gradients(optimizer, gradient)
    optimizer.step()
    below = {"bfloat16": 1, "float16": 2, "float8_e4m3fn": 4}[name]
    assert rows_of(tracker)[0, "gradients", "group0.0"]["subnormal"] == below


def test_a_closure_called_several_times_is_one_step_from_the_weights_before_it() -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)
    tracker, seen = GradientTracker(("gradients", "weights", "updates")), []
    before = net.weight.detach().clone()
    trimtab.attach(optimizer, tracker, model=net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(torch.arange(6.0).view(2, 3)).square().sum()
        loss.backward()
        seen.append(net.weight.grad.clone())
        return loss

    optimizer.step(closure)
    assert len(seen) > 1
    assert [key[0] for key in rows_of(tracker)] == [0] * 6
    assert_row(rows_of(tracker)[0, "gradients", "weight"], seen[0])
    assert_row(rows_of(tracker)[0, "weights", "weight"], before)
    assert_row(rows_of(tracker)[0, "updates", "weight"], net.weight.detach() - before)


def test_a_step_that_fails_is_not_logged() -> None:
    optimizer, _ = of((2, 2))
    tracker = GradientTracker()
    trimtab.attach(optimizer, tracker)

    class FailingError(Exception):
        pass

    def fail(*given: object) -> None:
        raise FailingError

    hook = optimizer.register_step_pre_hook(fail)
    set_gradients(optimizer, torch.ones(2, 2))
    with pytest.raises(FailingError):
        optimizer.step()
    hook.remove()
    set_gradients(optimizer, torch.full((2, 2), 3.0))
    optimizer.step()
    assert [(row["step"], row["mean"]) for row in tracker.table().to_pylist()] == [(0, 3.0), (0, 3.0)]


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("every", [1, 3])
def test_killed_and_resumed_leaves_the_rows_of_an_uninterrupted_run(tmp_path: Path, on_disk: bool, every: int) -> None:
    def tracked(name: str) -> tuple[GradientTracker, Autoscale]:
        scale = Autoscale()
        folder = tmp_path / name if on_disk else None
        kinds = ("gradients", "weights", "updates")
        return GradientTracker(kinds, every=every, folder=folder, capacity=2).watch(scale), scale

    whole, scale = tracked("whole")
    train(network(), whole, 9, scale)

    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    first, scale = tracked("parts")
    handle = trimtab.attach(optimizer, first, scale, model=net)
    file = io.BytesIO()
    for step in range(8):  # killed after 8 steps, the checkpoint is of 5
        if step == 5:
            torch.save([net.state_dict(), optimizer.state_dict(), handle.state_dict()], file)
        optimizer.zero_grad()
        torch.manual_seed(step)
        backward(net, seed=step)
        optimizer.step()
    first._rows.clear()

    file.seek(0)
    weights, momentum, levers = torch.load(file, weights_only=True)
    net = network(seed=1)
    net.load_state_dict(weights)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimizer.load_state_dict(momentum)
    second, scale = tracked("parts")
    handle = trimtab.attach(optimizer, second, scale, model=net)
    handle.load_state_dict(levers)
    for step in range(5, 9):
        optimizer.zero_grad()
        torch.manual_seed(step)
        backward(net, seed=step)
        optimizer.step()
    assert second.table().equals(whole.table())
    assert second.signals_table().equals(whole.signals_table())
    assert whole.signals_table().num_rows > 0
    if on_disk:
        for name in ("gradients.parquet", "signals.parquet"):
            assert read_table(tmp_path / "parts" / name).equals(read_table(tmp_path / "whole" / name))


def steps_in(folder: Path) -> list[int]:
    return sorted(set(read_table(folder / "gradients.parquet")["step"].to_pylist()))


def test_an_old_folder_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    train(network(), GradientTracker(folder=tmp_path, capacity=1), 5)
    with pytest.raises(ValueError, match=r"gradients\.parquet holds 5 part\(s\) of an earlier run.*overwrite=True"):
        train(network(1), GradientTracker(folder=tmp_path), 1)
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4]
    again = GradientTracker(folder=tmp_path, capacity=1, overwrite=True)
    assert again.table().num_rows == 0  # nothing of its own yet
    assert steps_in(tmp_path)[-1] == 4
    train(network(1), again, 2)
    assert steps_in(tmp_path) == [0, 1]


def test_two_trackers_in_one_folder(tmp_path: Path) -> None:
    first, second = GradientTracker(folder=tmp_path), GradientTracker(folder=tmp_path)
    train(network(), first, 3)  # nothing is written yet
    with pytest.raises(ValueError, match="of another tracker: give each its own folder"):
        train(network(1), second, 1)
    assert steps_in(tmp_path) == []
    first.flush()
    assert steps_in(tmp_path) == [0, 1, 2]

    third = GradientTracker(folder=tmp_path, overwrite=True)  # told to take the folder: the first one notices
    train(network(1), third, 2)
    train(network(), first, 1)
    with pytest.raises(ValueError, match="another tracker writes in"):
        first.flush()
    third.flush()
    assert steps_in(tmp_path) == [0, 1]


def test_signals_that_change_their_names_leave_the_rows_right(tmp_path: Path) -> None:
    net, tracker, plain, scale = network(), GradientTracker(), GradientTracker(), Autoscale()
    handle = train(net, tracker, 2, plain, scale)
    tracker.watch(scale)
    for step in (2, 3):
        backward(net, seed=step)
        handle.optimizers[0].step()
    assert tracker.table().equals(plain.table())
    assert set(tracker.signals_table()["step"].to_pylist()) == {2, 3}


def test_states_that_do_not_fit(tmp_path: Path) -> None:
    state = GradientTracker().state_dict()
    with pytest.raises(ValueError, match="'float16', this one in 'bfloat16'"):
        GradientTracker(small_format="bfloat16").load_state_dict(state)
    with pytest.raises(ValueError, match="in memory, this one has folder"):
        GradientTracker(folder=tmp_path).load_state_dict(state)
    with pytest.raises(ValueError, match=r"\['steps'\], not what a GradientTracker saves"):
        GradientTracker().load_state_dict({"steps": 1})


def test_removing_the_handle_flushes(tmp_path: Path) -> None:
    handle = train(network(), GradientTracker(folder=tmp_path), 2)
    assert steps_in(tmp_path) == []
    handle.remove()
    assert len(set(read_table(tmp_path / "gradients.parquet")["step"].to_pylist())) == 2


def test_listeners_get_each_flush_until_they_leave() -> None:
    tracker, seen = GradientTracker(capacity=2), []
    leave = tracker.subscribe(lambda rows, signals: seen.append((rows.num_rows, signals.num_rows)))
    handle = train(network(), tracker, 5)
    handle.remove()
    assert seen == [(6, 0), (6, 0), (3, 0)]
    leave()
    leave()
    train(network(), tracker, 2)
    assert len(seen) == 3


def test_to_pandas() -> None:
    pytest.importorskip("pandas")
    tracker = GradientTracker()
    train(network(), tracker, 2)
    frame = tracker.to_pandas()
    assert frame.pivot(index="step", columns="layer", values="std").shape == (2, 3)


def test_nothing_is_changed() -> None:
    def state_after(tracker: GradientTracker | None) -> list[Tensor]:
        net = network()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        trimtab.attach(optimizer, *([] if tracker is None else [tracker]), model=net)
        torch.manual_seed(3)
        for step in range(4):
            optimizer.zero_grad()
            backward(net, seed=step)  # dropout draws from the global generator
            optimizer.step()
        if tracker is not None:
            tracker.table()
        assert net.training
        gradients = [parameter.grad for parameter in net.parameters()]
        assert all(parameter.requires_grad and parameter.grad_fn is None for parameter in net.parameters())
        momenta = [value for state in optimizer.state.values() for value in state.values()]
        return [*net.state_dict().values(), *gradients, *momenta, torch.get_rng_state()]

    tracker = GradientTracker(("gradients", "weights", "updates"), capacity=3, rule=Rule(min_ndim=0))
    for plain, tracked in zip(state_after(None), state_after(tracker), strict=True):
        assert torch.equal(plain, tracked)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"track": ("gradient",)}, r"track must be some of 'gradients', 'weights', 'updates', got \('gradient',\)"),
        ({"track": ()}, "track must be some of"),
        ({"statistics": ("median",)}, "statistics must be some of 'mean'"),
        ({"every": 0}, "every must be a whole number of 1 or more"),
        ({"every": True}, "every must be a whole number"),
        ({"capacity": 0}, "capacity must be a whole number of 1 or more, got 0"),
        ({"small_format": "float12"}, "small_format must be one of 'float64'.*got 'float12'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        GradientTracker(**settings)


def test_a_rule_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="rule must be"):
        GradientTracker(rule="weight")  # type: ignore[arg-type]


@pytest.mark.parametrize("places", [[1, 2, 2, 7], []])
def test_sparse_gradients_equal_dense_ones(places: list[int]) -> None:
    torch.manual_seed(0)
    net = nn.Embedding(9, 3, sparse=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tracker = GradientTracker(("gradients", "weights", "updates"))
    trimtab.attach(optimizer, tracker, model=net)
    net(torch.tensor(places, dtype=torch.long)).square().sum().backward()
    assert net.weight.grad is not None
    gradient, before = net.weight.grad.to_dense(), net.weight.detach().clone()
    optimizer.step()
    rows = {row["kind"]: row for row in tracker.table().to_pylist() if row["layer"] == "weight"}
    assert net.weight.grad.is_sparse
    assert_row(rows["gradients"], gradient, 1e-6)
    assert_row(rows["weights"], before, 1e-6, weights=True)
    assert_row(rows["updates"], net.weight.detach() - before, 1e-6)


def test_repr() -> None:
    assert repr(GradientTracker("weights", every=5, rule=Rule(include=("a",)))) == (
        "GradientTracker(track=('weights',), every=5, min_ndim=2, include=('a',))"
    )


@pytest.mark.slow
def test_arrow_is_imported_only_where_rows_are_made() -> None:
    code = (
        "import sys, torch, trimtab; t = trimtab.observe.GradientTracker(); w = torch.nn.Parameter(torch.ones(2, 2));"
        "o = torch.optim.SGD([w], 0.1); trimtab.attach(o, t); w.grad = w.detach().clone(); o.step();"
        "assert 'pyarrow' not in sys.modules and 'pandas' not in sys.modules; t.table(); assert 'pyarrow' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
