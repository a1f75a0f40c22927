"""BatchNorm statistics after pruning: against the mean over batches, and nothing else touched."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.distributed import on_two_ranks
from tests.pruning.nets import Small, bits
from trimtab.pruning import Recalibration, recalibrate


def batches(number: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(7, 4, 6, 6, generator=generator) * 3 + 1 for _ in range(number)]


def test_statistics_are_the_plain_mean_over_batches() -> None:
    net = Small().train()
    net.norm.running_mean.fill_(50.0)
    net.norm.num_batches_tracked.fill_(9)  # as after training
    loader = batches()
    assert recalibrate(net, loader, batches=3) == Recalibration(modules=1, batches=3)
    with torch.no_grad():
        outputs = [net.conv(x).double() for x in loader[:3]]
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    variance = torch.stack([y.var((0, 2, 3), unbiased=True) for y in outputs]).mean(0)
    torch.testing.assert_close(net.norm.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.norm.running_var.double(), variance, rtol=1e-4, atol=1e-5)


def test_dropout_before_a_norm_is_off() -> None:
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3)).train()
    x = torch.randn(64, 3)
    recalibrate(net, [x])
    torch.testing.assert_close(net[1].running_mean, x.mean(0))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_but_the_statistics_changes(fails: bool) -> None:
    net = Small().train()
    net.conv.eval()
    net.norm.momentum = 0.3
    net(batches()[0]).sum().backward()
    before, modes = bits(net), [module.training for module in net.modules()]
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    random = torch.get_rng_state()

    def loader() -> Iterator[Tensor]:
        yield from batches(2)
        if fails:
            raise OSError("disk gone")

    if fails:
        with pytest.raises(OSError, match="disk gone"):
            recalibrate(net, loader())
    else:
        recalibrate(net, loader())
    changed = {name for name, value in bits(net).items() if value != before[name]}
    expected = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert changed <= (set() if fails else expected)
    assert ("norm.running_mean" in changed) != fails
    assert modes == [module.training for module in net.modules()]
    assert net.norm.momentum == 0.3
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert torch.equal(random, torch.get_rng_state())


def test_a_shuffling_loader_leaves_the_random_state() -> None:
    net = Small()
    loader = DataLoader(TensorDataset(torch.cat(batches()), torch.zeros(35)), batch_size=7, shuffle=True)
    state = torch.get_rng_state()
    assert recalibrate(net, loader).batches == 5
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.BatchNorm1d(4), (9, 4)), (nn.BatchNorm2d(4), (9, 4, 2, 2)), (nn.BatchNorm3d(4), (9, 4, 2, 2, 2))],
)
def test_every_class_of_batch_norm(norm: nn.Module, shape: tuple[int, ...]) -> None:
    net = nn.Sequential(norm).eval()
    x = torch.randn(shape) + 2
    assert recalibrate(net, [(x, "target")]).modules == 1
    torch.testing.assert_close(net(x).mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert not norm.training


def test_a_norm_that_is_not_reached_keeps_its_statistics() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
            self.unused.running_mean.fill_(5.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    net = Two()
    assert recalibrate(net, [torch.randn(4, 2)]).modules == 1
    assert net.unused.running_mean.tolist() == [5.0, 5.0]


@pytest.mark.parametrize(
    "net", [nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)), nn.LayerNorm(2)]
)
def test_without_statistics_nothing_happens(net: nn.Module) -> None:
    def unread() -> Iterator[Tensor]:
        raise AssertionError("the loader was read")
        yield

    assert recalibrate(net, unread()) == Recalibration(modules=0, batches=0)


def test_bad_loaders() -> None:
    net = Small()
    before = bits(net)
    with pytest.raises(ValueError, match="loader is empty"):
        recalibrate(net, [])
    with pytest.raises(ValueError, match="batches must be a whole number of 1 or more, got 0"):
        recalibrate(net, batches(), batches=0)
    with pytest.raises(TypeError, match="must be a tensor, a mapping of inputs, or start with one, got list of str"):
        recalibrate(net, [["a.png", "b.png"]])
    assert bits(net) == before


def _on_a_rank(rank: int, world: int) -> dict[str, list[Tensor] | str]:
    found: dict[str, list[Tensor] | str] = {}
    for name, counts in (("uneven", [2, 3]), ("one empty", [4, 0]), ("both empty", [0, 0])):
        torch.manual_seed(0)
        net = Small()
        net.norm.running_mean.fill_(7.0)
        model = nn.parallel.DistributedDataParallel(net) if name == "uneven" else net
        mine = batches()[: counts[0]] if rank == 0 else batches()[counts[0] : sum(counts)]
        try:
            result = recalibrate(model, mine)
        except ValueError as error:
            found[name] = f"{error}, running mean {net.norm.running_mean.unique().tolist()}"
        else:
            assert result == Recalibration(modules=1, batches=sum(counts))
            found[name] = [net.norm.running_mean, net.norm.running_var]
    torch.manual_seed(0)
    net = Small()
    recalibrate(net, batches()[rank : rank + 1], across_ranks=False)
    found["alone"] = [net.norm.running_mean, net.norm.running_var]
    return found


def _alone(loader: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(0)
    net = Small()
    recalibrate(net, loader)
    return [net.norm.running_mean, net.norm.running_var]


def test_two_ranks_equal_one_process() -> None:
    expected = {"uneven": _alone(batches()), "one empty": _alone(batches()[:4])}
    for rank, found in enumerate(on_two_ranks(_on_a_rank)):
        for name, statistics in expected.items():
            torch.testing.assert_close(found[name], statistics, rtol=1e-5, atol=1e-6)
        assert "loader is empty" in found["both empty"]
        assert "running mean [7.0]" in found["both empty"]  # as before
        torch.testing.assert_close(found["alone"], _alone(batches()[rank : rank + 1]))


class TwoInputs(nn.Module):
    """A norm whose input depends on both inputs, and on the optional third."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, a: Tensor, mask: Tensor, shift: float = 0.0) -> Tensor:
        out: Tensor = self.norm(a * mask + shift)
        return out


A, MASK = torch.arange(32.0).view(8, 4), torch.tensor([1.0, 0.0, 2.0, -1.0]).expand(8, 4)
TARGET = torch.full((8,), 7.0)


@pytest.mark.parametrize(
    ("batch", "shift"),
    [
        ((A, MASK), 0.0),
        ([A, MASK, TARGET], 0.0),
        (((A, MASK), TARGET), 0.0),
        (((A, MASK, 3.0), TARGET), 3.0),
        ({"mask": MASK, "a": A, "labels": TARGET}, 0.0),
        (({"mask": MASK, "a": A, "shift": 3.0}, TARGET), 3.0),
        (UserDict(a=A, mask=MASK), 0.0),
    ],
)
def test_several_and_named_inputs(batch: object, shift: float) -> None:
    net = TwoInputs()
    assert recalibrate(net, [batch]) == Recalibration(modules=1, batches=1)
    assert net.norm.running_mean is not None
    torch.testing.assert_close(net.norm.running_mean, (A * MASK).mean(0) + shift)


def test_a_loader_of_any_form_through_forward() -> None:
    net = TwoInputs()
    batches = [{"views": [A, A + 1], "mask": MASK}, {"views": [A, A + 3], "mask": MASK}]

    def run(model: nn.Module, batch: dict[str, Any]) -> None:
        model(batch["views"][1], batch["mask"])

    assert recalibrate(net, batches, forward=run) == Recalibration(modules=1, batches=2)
    assert net.norm.running_mean is not None
    torch.testing.assert_close(net.norm.running_mean, ((A + 2) * MASK).mean(0))


def test_batches_that_lack_an_input() -> None:
    with pytest.raises(TypeError, match=r"TwoInputs.forward needs 2 inputs \(a, mask\), the batch holds 1 items"):
        recalibrate(TwoInputs(), [(A,)])
    with pytest.raises(TypeError, match=r"TwoInputs.forward needs mask, the batch holds a, labels"):
        recalibrate(TwoInputs(), [{"a": A, "labels": TARGET}])
