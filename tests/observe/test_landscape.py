"""Sections of the loss against closed forms and a plain evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.observe.curvature.networks import CROSS_ENTROPY, KINDS, labels, network
from tests.observe.curvature.test_sharpness import bowl
from trimtab.models import create
from trimtab.observe.curvature import Hessian, Objective, top_eigenvalues
from trimtab.observe.landscape import eigenvector_directions, random_directions, section


def objective(kind: str = "tanh", **options: object) -> Objective:
    net, inputs = network(kind)
    return Objective(net, CROSS_ENTROPY, (inputs, labels()), **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at_once", [1, 4])
def test_the_centre_is_the_loss_bit_for_bit(kind: str, dtype: torch.dtype, at_once: int) -> None:
    net, inputs = network(kind)
    net, inputs = net.to(dtype), inputs.to(dtype)
    single = Objective(net, CROSS_ENTROPY, (inputs, labels()))
    found = section(single, random_directions(single), points=3, at_once=at_once)
    with torch.no_grad():
        plain = CROSS_ENTROPY(net.eval()(inputs), labels()).item()
    assert found.centre == found.losses[1][1] == plain


def test_the_centre_of_a_channels_last_network() -> None:
    torch.manual_seed(0)
    net = create("resnet20", num_classes=10).to(memory_format=torch.channels_last).eval()
    images, target = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last), torch.arange(4)
    one = Objective(net, CROSS_ENTROPY, (images, target))
    with torch.no_grad():
        assert section(one, random_directions(one, 1), points=3).centre == CROSS_ENTROPY(net(images), target).item()


def test_a_quadratic_is_met_exactly() -> None:
    quadratic = bowl([1.0, 2.0], [3.0, 1.0])
    directions = random_directions(quadratic, 2, scale="none", seed=4)
    found = section(quadratic, directions, reach=2.0, points=5)
    assert found.coordinates == (-2.0, -1.0, 0.0, 1.0, 2.0)
    for a, row in zip(found.coordinates, found.losses, strict=True):
        for b, loss in zip(found.coordinates, row, strict=True):
            w = torch.tensor([1.0, 2.0], dtype=torch.float64) + a * directions.vectors[0] + b * directions.vectors[1]
            assert loss == pytest.approx(0.5 * float((torch.tensor([3.0, 1.0]) * w.square()).sum()), rel=1e-12)


def test_curvature_along_an_eigenvector_is_its_eigenvalue() -> None:
    smooth = objective()
    found = top_eigenvalues(Hessian(smooth), 2, tolerance=1e-8, vectors=True)
    directions = eigenvector_directions(smooth, found)
    norm = float(smooth.flat(smooth.weights).norm())
    assert directions.vectors.norm(dim=1).tolist() == pytest.approx([norm, norm])
    assert abs(directions.cosine) < 1e-6
    step = 1e-3
    plane = section(smooth, directions, reach=step, points=3)
    assert (plane.losses[2][1] - 2 * plane.centre + plane.losses[0][1]) / (step * norm) ** 2 == pytest.approx(
        found.values[0], rel=1e-3
    )
    assert (plane.losses[1][2] - 2 * plane.centre + plane.losses[1][0]) / (step * norm) ** 2 == pytest.approx(
        found.values[1], rel=1e-3
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["frozen", "batch"])
def test_points_together_and_one_by_one_agree(kind: str, policy: str) -> None:
    one = objective(kind, batch_norm=policy)
    directions = random_directions(one)
    streamed, together = (section(one, directions, points=5, at_once=number) for number in (1, 7))
    for first, second in zip(streamed.losses, together.losses, strict=True):
        assert first == pytest.approx(second, rel=1e-10)
    assert (streamed.at_once, together.at_once) == (1, 7)


def test_several_batches_are_one_loss() -> None:
    net, inputs = network("batch norm")
    whole = Objective(net, CROSS_ENTROPY, (inputs, labels()))
    split = Objective(net, CROSS_ENTROPY, [(inputs[:5], labels()[:5]), (inputs[5:], labels()[5:])])
    directions = random_directions(whole, 1)
    for at_once in (1, 3):
        found = section(split, directions, points=7, at_once=at_once)
        assert found.losses == pytest.approx(section(whole, directions, points=7).losses, rel=1e-10)


def test_filters_have_the_norm_of_the_weights() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 4))
    with torch.no_grad():
        net[3].weight[2] = 0
    one = Objective(net, CROSS_ENTROPY, (torch.randn(2, 2, 2, 2), torch.arange(2)))
    drawn = dict(zip([e.name for e in one.entries], one.split(random_directions(one).vectors[1]), strict=True))
    for filter_number in range(3):
        expected = net[0].weight[:, filter_number].detach().norm()
        torch.testing.assert_close(drawn["0.weight"][:, filter_number].norm(), expected)
    torch.testing.assert_close(drawn["3.weight"].norm(dim=1), net[3].weight.detach().norm(dim=1))
    assert not drawn["3.weight"][2].any()
    assert not any(drawn[name].any() for name in ("0.bias", "1.weight", "1.bias", "3.bias"))
    scaled = random_directions(one, one_dimensional="scaled", scale="tensor")
    drawn = dict(zip([e.name for e in one.entries], one.split(scaled.vectors[0]), strict=True))
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(drawn[name].norm(), parameter.detach().norm())


def test_filter_normalization_does_not_see_the_scale_that_batch_norm_takes_out() -> None:
    net, inputs = network("batch norm")
    net[1].eps = 1e-12
    seen = []
    for factor in (1.0, 10.0):
        net[0].weight.data.mul_(factor)
        net[0].bias.data.mul_(factor)
        one = Objective(net, CROSS_ENTROPY, (inputs, labels()), batch_norm="batch")
        seen.append(section(one, random_directions(one, 1), points=9).losses)
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)


def test_seeds() -> None:
    one = objective()
    first, again, other = (random_directions(one, seed=seed).vectors for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Interrupting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.calls, self.limit = nn.Linear(5, 3).double(), 0, math.inf

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > self.limit:
            raise KeyboardInterrupt
        return self.layer(inputs)


def test_an_interrupted_section_goes_on_and_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    net, file = Interrupting(), tmp_path / "points.json"
    one = Objective(net, CROSS_ENTROPY, (network("tanh")[1], labels()))
    directions = random_directions(one)
    whole = section(one, directions, points=5)
    assert net.calls == 25
    net.calls, net.limit = 0, 10
    with pytest.raises(KeyboardInterrupt):
        section(one, directions, points=5, file=file)
    assert len(json.loads(file.read_text())["losses"]) == 10
    net.calls, net.limit = 0, math.inf
    seen: list[tuple[int, int]] = []
    resumed = section(one, directions, points=5, file=file, progress=lambda *done: seen.append(done))
    assert resumed == whole
    assert net.calls == 1 + 15  # the centre is always measured
    assert (seen[0], seen[-1]) == ((10, 25), (25, 25))
    assert section(one, directions, points=5, file=file) == whole


def test_a_file_of_another_section_is_refused(tmp_path: Path) -> None:
    file, one = tmp_path / "points.json", objective()
    section(one, random_directions(one, 1), points=3, file=file)
    with pytest.raises(ValueError, match=r"points.json belongs to another section"):
        section(one, random_directions(one, 1, seed=1), points=3, file=file)
    net, inputs = network("tanh")
    data = Objective(net, CROSS_ENTROPY, (inputs * 2, labels()))
    with pytest.raises(ValueError, match=r"points.json belongs to another section"):
        section(data, random_directions(data, 1), points=3, file=file)
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"points.json is not a file of landscape points"):
        section(one, random_directions(one, 1), points=3, file=file)


def test_infinite_losses_are_kept_as_they_are(tmp_path: Path) -> None:
    net = nn.Linear(1, 1, bias=False).double()
    net.weight.data.fill_(1.0)
    one = Objective(net, lambda o, t: -torch.log(o).sum(), (torch.ones(1, 1), torch.zeros(1)))
    directions = random_directions(one, 1, seed=1)
    for _ in range(2):  # computed, then read from the file
        found = section(one, directions, reach=2.0, points=5, file=tmp_path / "points.json")
        assert sum(math.isnan(loss) for loss in found.losses) == 1  # the logarithm of -1
        assert sum(math.isinf(loss) for loss in found.losses) == 1  # of 0


def test_networks_that_cannot_be_vectorized_are_streamed() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3).double()

        def forward(self, inputs: Tensor) -> Tensor:
            out = self.layer(inputs)
            return out if out.sum() > 0 else 2 * out

    one = Objective(Branches(), CROSS_ENTROPY, (network("tanh")[1], labels()))
    with pytest.raises(RuntimeError, match="vmap"):
        section(one, random_directions(one, 1), points=3, at_once=2)
    assert section(one, random_directions(one, 1), points=3).at_once == 1


def test_bad_arguments() -> None:
    one = objective()
    directions = random_directions(one, 1)
    with pytest.raises(ValueError, match=r"points must be odd and 3 or more.* got 4"):
        section(one, directions, points=4)
    with pytest.raises(ValueError, match="reach must be finite and above 0"):
        section(one, directions, reach=0.0)
    with pytest.raises(ValueError, match="at_once must be a whole number of 1 or more"):
        section(one, directions, at_once=0)
    with pytest.raises(ValueError, match=r"count must be a whole number in 1\.\.2"):
        random_directions(one, 3)
    with pytest.raises(ValueError, match="scale must be one of"):
        random_directions(one, scale="layer")
    with pytest.raises(ValueError, match="without vectors"):
        eigenvector_directions(one, top_eigenvalues(Hessian(one)))
    net = nn.Linear(2, 2)
    net.weight.data.zero_()
    zero = Objective(net, CROSS_ENTROPY, (torch.ones(1, 2), torch.zeros(1, dtype=torch.int64)))
    with pytest.raises(ValueError, match="a direction is zero everywhere"):
        random_directions(zero)
