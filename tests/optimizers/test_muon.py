"""Muon with SGD for the rest: torch's own steps bit for bit, its parts, levers around it, exact resume."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trimtab
from tests.runs.test_groups import BIASES, WHITENING, fast_recipe
from trimtab.optimizers import Muon
from trimtab.parameters import Rule
from trimtab.penalties import L1
from trimtab.runs.checkpoint import load_checkpoint
from trimtab.runs.position import Progress
from trimtab.runs.training import train


def pictures() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 5)
    )


def backward(net: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 3, 4, 4, generator=generator)
    net.zero_grad()
    F.cross_entropy(net(x), torch.arange(8) % 5).backward()


def stepped(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    for step in steps:
        backward(net, step)
        optimizer.step()
    return [parameter.detach().clone() for parameter in net.parameters()]


def test_matrices_and_the_rest_take_torchs_own_steps_bit_for_bit() -> None:
    ours, theirs = pictures(), pictures()
    optimizer = Muon(
        ours.parameters(), 0.05, 0.8, 0.1, ns_steps=3, sgd_lr=0.2, sgd_momentum=0.7, sgd_weight_decay=0.01,
        rule=Rule(exclude=("5.weight",)), model=ours,
    )  # fmt: skip
    convolutions = [theirs[0].weight, theirs[3].weight]
    flats = [nn.Parameter(weight.detach().reshape(len(weight), -1).clone()) for weight in convolutions]
    muon = torch.optim.Muon(flats, 0.05, 0.1, 0.8, ns_steps=3)
    rest = [p for p in theirs.parameters() if not any(p is weight for weight in convolutions)]
    sgd = torch.optim.SGD(rest, 0.2, 0.7, weight_decay=0.01, nesterov=True)
    for step in range(4):
        stepped(ours, optimizer, range(step, step + 1))
        backward(theirs, step)
        for flat, weight in zip(flats, convolutions, strict=True):
            assert weight.grad is not None
            flat.grad = weight.grad.reshape(flat.shape)
        muon.step()
        sgd.step()
        for flat, weight in zip(flats, convolutions, strict=True):
            weight.data.copy_(flat.reshape(weight.shape))
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    reasons = {entry.name: reason for entry, reason in optimizer.left_out}
    assert reasons["5.weight"] == "name matches exclude pattern '5.weight'"
    assert len(reasons) == 6


def test_a_step_is_orthogonal_whatever_the_size_of_the_gradient() -> None:
    """Twelve steps of an exactly convergent iteration: the update is U V^T of the gradient, from NumPy's SVD."""
    weight = nn.Parameter(torch.zeros(6, 4, 3, 3))
    for scale in (1e-3, 1e3):
        weight.data.zero_()
        optimizer = Muon([("weight", weight)], 1.0, 0.0, ns_steps=12, ns_coefficients=(1.875, -1.25, 0.375))
        weight.grad = scale * torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        u, _, v = np.linalg.svd(weight.grad.double().reshape(6, -1).numpy(), full_matrices=False)
        np.testing.assert_allclose(-weight.detach().reshape(6, -1).numpy(), u @ v, atol=0.02)


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_the_step_is_scaled_by_the_shape(adjust: Any) -> None:
    tall = nn.Parameter(torch.zeros(12, 3))
    tall.grad = torch.eye(12, 3)
    Muon([("tall", tall)], 0.1, 0.0, ns_steps=12, ns_coefficients=(1.875, -1.25, 0.375), adjust_lr=adjust).step()
    expected = 0.1 * (2.0 if adjust == "original" else 0.2 * 12**0.5)
    assert -tall[0, 0].item() == pytest.approx(expected, rel=0.01)


def test_renormalize_brings_every_matrix_to_rows_of_norm_one_before_its_step() -> None:
    net = pictures()
    optimizer = Muon(net.parameters(), lr=0.0, renormalize=True, model=net, rule=Rule(exclude=("5.*",)))
    before = [net[5].weight.detach().clone(), net[0].bias.detach().clone()]  # type: ignore[operator]
    backward(net, 0)
    optimizer.param_groups[1]["lr"] = 0.0
    direction = F.normalize(net[3].weight.detach().flatten(), dim=0)
    optimizer.step()
    assert net[3].weight.norm().item() == pytest.approx(4**0.5, rel=1e-5)
    assert net[0].weight.norm().item() == pytest.approx(6**0.5, rel=1e-5)
    torch.testing.assert_close(F.normalize(net[3].weight.detach().flatten(), dim=0), direction)
    assert torch.equal(net[5].weight, before[0])
    assert torch.equal(net[0].bias, before[1])


def test_tables_heads_and_vectors_are_left_to_sgd_with_the_reason() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.hidden, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    net = Words()
    optimizer = Muon(net.parameters(), model=net)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 4]
    assert optimizer.param_groups[0]["params"][0] is net.hidden.weight
    reasons = {entry.name: reason for entry, reason in optimizer.left_out}
    assert reasons["table.weight"] == "a table of embeddings"
    assert "exclude pattern '*head.weight'" in reasons["head.weight"]
    assert reasons["hidden.bias"] == "1 dimension(s), fewer than 2"
    named = Muon(Words().named_parameters())  # no owner, so the table is a matrix like any other
    assert [len(group["params"]) for group in named.param_groups] == [2, 3]


def test_groups_are_split_and_keep_what_they_set() -> None:
    net = pictures()
    groups = [
        {"params": list(net[0].parameters()), "lr": 0.3, "group": "first"},
        {"params": [p for layer in net[1:] for p in layer.parameters()]},
    ]
    optimizer = Muon(groups, 0.1, sgd_lr=0.2, model=net)
    held = [
        (group["matrices"], group.get("group"), len(group["params"]), group["lr"]) for group in optimizer.param_groups
    ]
    assert held == [(True, "first", 1, 0.3), (False, "first", 1, 0.3), (True, None, 2, 0.1), (False, None, 4, 0.2)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.15, 0.15, 0.05, 0.1]
    assert schedule.get_last_lr() == [0.15, 0.15, 0.05, 0.1]


@pytest.mark.parametrize("ordered", [False, True], ids=["", "channels_last"])
def test_resumed_and_copied_go_on_bit_for_bit(ordered: bool) -> None:
    def begun() -> tuple[nn.Module, Muon]:
        net = pictures()
        net = net.to(memory_format=torch.channels_last) if ordered else net  # type: ignore[call-overload]
        return net, Muon(net.parameters(), 0.05, model=net)

    whole = stepped(*begun(), range(5))
    net, optimizer = begun()
    stepped(net, optimizer, range(3))
    twin, of_twin = copy.deepcopy((net, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(stepped(twin, of_twin, range(3, 5)), whole, strict=True))
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for memory in state["optimizer"]["state"].values():  # as our checkpoints keep tensors
        memory["momentum_buffer"] = memory["momentum_buffer"].contiguous()
    again, resumed = begun()
    again.load_state_dict(state["net"])
    resumed.load_state_dict(state["optimizer"])
    assert all(torch.equal(a, b) for a, b in zip(stepped(again, resumed, range(3, 5)), whole, strict=True))


@pytest.mark.parametrize("wrapper", ["sam", "asam", "cram+"])
def test_levers_and_wrappers_work_on_it(wrapper: str) -> None:
    def run(acting: bool) -> list[Tensor]:
        net = pictures()
        optimizer: Any = Muon(net.parameters(), 0.05, model=net)
        if acting:
            optimizer = trimtab.registry.create(wrapper, optimizer, model=net)
            trimtab.attach(optimizer, L1(0.01), model=net)

        for step in range(3):

            def closure(step: int = step) -> Tensor:
                optimizer.zero_grad()
                backward(net, step)
                return torch.zeros(())

            optimizer.step(closure)
        return [parameter.detach().clone() for parameter in net.parameters()]

    plain, steered = run(acting=False), run(acting=True)
    assert all(bool(one.isfinite().all()) for one in steered)
    assert not any(torch.equal(a, b) for a, b in zip(plain, steered, strict=True) if a.ndim > 1)


def test_a_recipe_trains_with_it_and_its_checkpoint_resumes_exactly(tmp_path: Path) -> None:
    recipe = fast_recipe(
        method="l1+cram+", optimizer="muon", muon__lr=0.1, muon__renormalize=True, muon__sgd_lr=0.05,
        groups={"whitening": WHITENING, "biases": BIASES, "head": {"include": "head.weight", "lr_factor": 3}},
    )  # fmt: skip
    whole = train(recipe, tmp_path / "whole")
    groups = load_checkpoint(whole.checkpoint_file)["optimizer"]["param_groups"]
    assert [(g["group"], g["matrices"], round(g["initial_lr"], 6)) for g in groups] == [
        ("", True, 0.1), ("whitening", False, 0.1), ("biases", False, 0.2), ("head", False, 0.15)
    ]  # fmt: skip

    def crash(progress: Progress) -> None:
        if progress.epoch == 1:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(recipe, tmp_path / "parts", crash)
    parts = train(recipe, tmp_path / "parts")
    assert whole.model_file.read_bytes() == parts.model_file.read_bytes()
    assert whole.metrics() == parts.metrics()


def test_an_older_torch_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    monkeypatch.setattr(torch, "__version__", "2.8.0")
    with pytest.raises(
        ValueError, match=r"^torch.optim.Muon came with torch 2.9; this is torch 2.8.0. Use sgd or adamw"
    ):
        Muon([("weight", nn.Parameter(torch.zeros(2, 2)))])
    with pytest.raises(ValueError, match=r"muon: torch.optim.Muon came with torch 2.9; this is torch 2.8.0"):
        fast_recipe(method="muon")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be finite and 0 or more, got -1"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1"),
        ({"ns_steps": 0}, "ns_steps must be a whole number in 1..99, got 0"),
        ({"ns_coefficients": (1.0, 2.0)}, "ns_coefficients must be three numbers"),
        ({"adjust_lr": "rms"}, "adjust_lr must be one of 'original', 'match_rms_adamw', got 'rms'"),
        ({"sgd_lr": float("nan")}, "sgd_lr must be finite"),
        ({"sgd_momentum": 1.5}, "sgd_momentum must lie in"),
        ({}, "has no name"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    net = pictures()
    with pytest.raises(ValueError, match=message):
        Muon(net.parameters(), **settings, **({"model": net} if settings else {}))
