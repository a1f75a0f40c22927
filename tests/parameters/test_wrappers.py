"""A wrapped network has the plain one's names: in masks, files, rows, checkpoints, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim.swa_utils import AveragedModel

import trimtab
from trimtab.deploy import load_sparse, save_sparse
from trimtab.observe import summary
from trimtab.observe.curvature import Hessian, Objective, trace
from trimtab.parameters import entries
from trimtab.parameters.wrappers import (
    load_own_state,
    own_modules,
    own_names,
    own_state,
    unwrapped,
    without_marks,
)
from trimtab.pruning import keep_masks, one_shot, recalibrate


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Sequential(nn.ReLU(), nn.Linear(8, 3)))


def compiled(net: nn.Module) -> nn.Module:
    return cast("nn.Module", torch.compile(net, backend="eager"))


def with_wrapped_part(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def inside(net: nn.Module) -> nn.Module:
        net[2] = wrap(net[2])  # type: ignore[operator,index]
        return net

    return inside


def fabric(net: nn.Module) -> nn.Module:
    library = pytest.importorskip("lightning_fabric")
    return cast("nn.Module", library.Fabric(accelerator="cpu", devices=1).setup_module(net))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": compiled,
    "DataParallel": nn.DataParallel,
    "DDP": nn.parallel.DistributedDataParallel,
    "compile of DDP": lambda net: compiled(nn.parallel.DistributedDataParallel(net)),
    "AveragedModel": AveragedModel,
    "AveragedModel of compile": lambda net: AveragedModel(compiled(net)),
    "Fabric": fabric,
    "compiled part": with_wrapped_part(compiled),
    "recomputed part": with_wrapped_part(checkpoint_wrapper),
    "parallel part": with_wrapped_part(nn.DataParallel),
}


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_are_the_plain_networks(wrapper: str) -> None:
    plain = network()
    wrapped = WRAPPERS[wrapper](network())
    assert [entry.name for entry in entries(wrapped)] == [name for name, _ in plain.named_parameters()]
    assert {name for name, _ in own_modules(wrapped)} == {name for name, _ in plain.named_modules()}
    assert {name: tensor.tolist() for name, tensor in own_state(wrapped).items()} == {
        name: tensor.tolist() for name, tensor in plain.state_dict().items()
    }
    assert list(one_shot(wrapped, 0.5).masks) == list(one_shot(plain, 0.5).masks) == ["0.weight", "2.1.weight"]
    example = torch.ones(4, 6)
    rows = [(row.name, row.parameters, row.dense_multiply_adds) for row in summary(wrapped, example).layers]
    assert rows == [(row.name, row.parameters, row.dense_multiply_adds) for row in summary(plain, example).layers]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_sparse_file_goes_from_wrapped_to_plain_and_back(wrapper: str, tmp_path: Path) -> None:
    wrapped = WRAPPERS[wrapper](network())
    one_shot(wrapped, 0.5)
    save_sparse(wrapped, tmp_path / "wrapped.safetensors")
    plain = network(1)
    load_sparse(tmp_path / "wrapped.safetensors", plain)
    for name, tensor in own_state(wrapped).items():
        assert torch.equal(plain.state_dict()[name], tensor)
    save_sparse(plain, tmp_path / "plain.safetensors")
    again = WRAPPERS[wrapper](network(2))
    load_sparse(tmp_path / "plain.safetensors", again)
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in own_state(again).items())
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "wrapped.safetensors").read_bytes()


@pytest.mark.parametrize("wrapper", ["compile", "DataParallel", "compile of DDP", "compiled part"])
def test_the_file_of_a_wrapped_networks_state_dict_fits_the_plain_one(wrapper: str, tmp_path: Path) -> None:
    wrapped = WRAPPERS[wrapper](network())
    save_sparse(wrapped.state_dict(), tmp_path / "state.safetensors")
    plain = network(1)
    load_sparse(tmp_path / "state.safetensors", plain)
    assert torch.equal(plain.state_dict()["0.weight"], own_state(wrapped)["0.weight"])


def test_a_network_that_differs_is_still_refused(tmp_path: Path) -> None:
    save_sparse(compiled(network()), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"missing \['weight'\], unexpected .*'0.weight'"):
        load_sparse(tmp_path / "net.safetensors", compiled(nn.Linear(6, 8, bias=False)))


@pytest.mark.filterwarnings(
    "ignore:2 mask.s. remove weights that are not zero now:UserWarning"
)  # the network was averaged
def test_masks_of_an_average_keep_the_network_and_the_other_way_round() -> None:
    net = network()
    average = AveragedModel(net)
    masks = one_shot(average, 0.5).masks
    optimizer = torch.optim.SGD(compiled(net).named_parameters(), lr=0.1)
    keep_masks(optimizer, masks)
    net(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    assert torch.equal(net.state_dict()["0.weight"].eq(0), ~masks["0.weight"])


def test_rows_have_the_same_names_from_a_model_and_from_a_named_optimizer() -> None:
    net = network()
    wrapped = nn.parallel.DistributedDataParallel(compiled(net))
    names = [name for name, _ in net.named_parameters()]
    optimizer = torch.optim.SGD(wrapped.named_parameters(), lr=0.1)
    assert [entry.name for entry in entries(optimizer)] == names
    assert [entry.name for entry in entries(wrapped.named_parameters())] == names
    assert entries(optimizer)[0].aliases == ("module._orig_mod.0.weight",)


def test_recalibration_and_curvature_run_through_wrappers() -> None:
    batches = [torch.randn(16, 6) for _ in range(2)]
    plain, average = network(), AveragedModel(compiled(network()))
    recalibrate(plain, batches)
    recalibrate(average, batches)
    assert torch.equal(own_state(average)["1.running_mean"], plain.state_dict()["1.running_mean"])
    data = [(batches[0], torch.randn(16, 3))]
    wrapped = with_wrapped_part(compiled)(copy.deepcopy(plain))
    found, wanted = (trace(Hessian(Objective(net, nn.functional.mse_loss, data))).value for net in (wrapped, plain))
    assert found == wanted != 0


def test_a_genuine_part_of_a_wrappers_name_keeps_it() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    assert [entry.name for entry in entries(Holder())] == ["module.weight", "module.bias"]
    assert unwrapped(nn.DataParallel(nn.DataParallel(holder := Holder()))) is holder
    assert without_marks(["module.a", "b"]) == ["module.a", "b"]
    assert without_marks(["a", "_orig_mod.a"]) == ["a", "_orig_mod.a"], "two names must not become one"


def test_two_tensors_of_one_name_are_refused() -> None:
    net = nn.Sequential(AveragedModel(AveragedModel(nn.Linear(2, 2))))
    with pytest.raises(ValueError, match=r"0\.n_averaged and 0\.module\.n_averaged are both 0\.n_averaged"):
        own_names(net, net.state_dict())


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")  # one process
def test_the_flat_parts_of_a_sharding_wrapper_are_named_and_not_pruned() -> None:
    net = network()
    sharded = FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"))
    assert [entry.name for entry in entries(sharded)] == [name for name, _ in network().named_parameters()]
    assert unwrapped(compiled(sharded)) is sharded
    with pytest.raises(ValueError, match=r"flat parts.*gather the model into one process"):
        one_shot(sharded, 0.5)


def test_a_state_loads_into_any_wrapping() -> None:
    source, target = nn.DataParallel(network()), AveragedModel(with_wrapped_part(compiled)(network(1)))
    load_own_state(target, own_state(source))
    inputs = torch.randn(4, 6)
    assert torch.equal(target.eval()(inputs), cast("Tensor", source.eval()(inputs)))


def test_a_tracker_over_a_compiled_part_writes_its_own_name() -> None:
    net = with_wrapped_part(compiled)(network())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tracker = trimtab.observe.GradientTracker(every=1)
    trimtab.attach(optimizer, tracker, model=net)
    net(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    tracker.flush()
    assert "2.1.weight" in tracker.table()["layer"].to_pylist()
