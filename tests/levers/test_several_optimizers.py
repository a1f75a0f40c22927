"""attach([optimizer, ...]): one step counted for all, and one lever in one place."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from tests.levers.test_attach import Around, Recorder
from trimtab.gradients import Autoscale, Chain, ClipNorm
from trimtab.observe import GradientTracker
from trimtab.parameters import Rule
from trimtab.penalties import L1


def pair() -> tuple[nn.ModuleDict, torch.optim.Optimizer, torch.optim.Optimizer]:
    torch.manual_seed(0)
    nets = nn.ModuleDict({"g": nn.Linear(4, 4), "d": nn.Linear(4, 1)})
    return nets, *(torch.optim.SGD(nets[name].parameters(), lr=0.1) for name in "gd")


def test_a_gan_counts_one_step_per_round() -> None:
    nets, first, second = pair()
    tracker = GradientTracker(("gradients", "weights", "updates"))
    trimtab.attach([first, second], tracker, L1(0.1), ClipNorm(1e9), model=nets)
    wanted: dict[tuple[int, str, str], Tensor] = {}
    for step in range(3):
        for name, optimizer in (("d", second), ("g", first)):
            optimizer.zero_grad()
            images = nets["g"](torch.randn(8, 4))
            (nets["d"](images.detach()) if name == "d" else -nets["d"](images)).mean().backward()
            weight = nets[name].weight
            before, gradient = weight.detach().clone(), weight.grad.clone()
            left_over = nets["d"].weight.grad.clone()  # the generator's loss leaves one in the discriminator
            optimizer.step()
            wanted[step, f"{name}.weight", "gradients"] = gradient
            wanted[step, f"{name}.weight", "weights"] = before
            wanted[step, f"{name}.weight", "updates"] = weight.detach() - before
            torch.testing.assert_close(weight.detach(), before - 0.1 * (gradient + 0.1 * before.sign()))
            if name == "g":
                assert torch.equal(nets["d"].weight.grad, left_over)  # no lever touched it
    assert tracker.step == 3
    rows = {(row["step"], row["layer"], row["kind"]): row for row in tracker.table().to_pylist()}
    assert {key for key in rows if key[1] != "(global)"} == set(wanted)
    for key, tensor in wanted.items():
        assert rows[key]["norm"] == pytest.approx(float(tensor.norm()), rel=1e-6)


def test_one_that_steps_more_often_counts_its_own_steps() -> None:
    nets, first, second = pair()
    tracker = GradientTracker()
    handle = trimtab.attach([first, second], tracker, model=nets)
    for parameter in nets.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in (second, second, second, first, second, second):
        optimizer.step()
    handle.remove()
    steps = [(row["step"], row["layer"]) for row in tracker.table().to_pylist() if row["layer"] != "(global)"]
    assert steps == [
        (0, "d.weight"),
        (1, "d.weight"),
        (2, "g.weight"),
        (2, "d.weight"),
        (3, "d.weight"),
        (4, "d.weight"),
    ]


def test_an_optimizer_per_parameter_in_the_backward_pass() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in net.parameters()}
    tracker = GradientTracker(rule=Rule(min_ndim=0))
    trimtab.attach([*optimizers.values()], tracker, ClipNorm(1e-3), model=net)

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    for _ in range(3):
        before = [parameter.detach().clone() for parameter in net.parameters()]
        net(torch.randn(8, 4)).square().mean().backward()
        moved = [float((new.detach() - old).norm()) for new, old in zip(net.parameters(), before, strict=True)]
        assert moved == pytest.approx([1e-4] * 4, rel=1e-2)  # clipped one by one: the gradients never exist together
    assert tracker.step == 3
    layers = [row["layer"] for row in tracker.table().to_pylist() if row["step"] == 1]
    assert layers == ["0.weight", "0.bias", "2.weight", "2.bias", "(global)"]


def test_names_without_a_model_tell_the_optimizers_apart() -> None:
    _, first, second = pair()
    recorder = Recorder()
    trimtab.attach((first, second), recorder)
    for parameter in second.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    second.step()
    assert list(recorder.seen[0]) == ["optimizer1.group0.0", "optimizer1.group0.1"]


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("wrap", [lambda lever: lever, Chain])
def test_one_lever_attached_twice_is_refused(same: bool, wrap: Any) -> None:
    _, first, second = pair()
    lever = L1(0.1)
    handle = trimtab.attach(first, lever)
    with pytest.raises(ValueError, match=r"is attached already, to a SGD.*attach\(\[optimizer, ...\], lever\)"):
        trimtab.attach(first if same else second, wrap(lever))
    handle.remove()
    trimtab.attach(second, wrap(lever)).remove()
    with pytest.raises(ValueError, match="is given twice"):
        trimtab.attach(first, lever, wrap(lever))


def test_a_lever_of_a_forgotten_optimizer_is_free() -> None:
    lever = L1(0.1)
    gc.disable()
    try:
        trimtab.attach(pair()[1], lever)
        trimtab.attach(pair()[1], lever)
    finally:
        gc.enable()


def test_levers_that_remember_all_tensors_together_are_refused() -> None:
    _, first, second = pair()
    with pytest.raises(ValueError, match=r"Autoscale.* does not act on 2 optimizers at once: it remembers one sigma"):
        trimtab.attach([first, second], Autoscale())
    with pytest.raises(ValueError, match="one optimizer or several different ones"):
        trimtab.attach([first, first])
    with pytest.raises(ValueError, match="one optimizer or several different ones"):
        trimtab.attach([])


def test_members_of_a_chain_are_told_of_the_step() -> None:
    _, first, _ = pair()
    log: list[str] = []
    trimtab.attach(first, Chain(Around(0.0, log, "a")))
    first.step()
    assert log == ["a", "after a"]
