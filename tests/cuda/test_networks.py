"""Pruning, recalibration, tracking, curvature, sparse layers and files, and a whole run: on the device as on the CPU."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import trimtab
from tests.cuda.network import assert_close, batch, network, take_steps, weights_of
from tests.runs.tiny import tiny_recipe
from trimtab.deploy import CsrLinear, load_sparse, save_sparse
from trimtab.observe import GradientTracker
from trimtab.observe.curvature import GaussNewton, Hessian, Objective, top_eigenvalues
from trimtab.observe.landscape import random_directions, section
from trimtab.pruning import keep_masks, one_shot, recalibrate, sweep
from trimtab.runs.loading import load_data
from trimtab.studies import prune_run, train, trained_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("score", ["magnitude", "layer_magnitude", "random"])
@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_the_same_weights_are_pruned(pattern, score, scope, device):
    sparsity = 0.7 if pattern == "unstructured" else None
    kept = {}
    for place in (CPU, device):
        pruned = one_shot(
            network(place), sparsity, score=score, scope=scope, pattern=pattern, seed=3, indivisible="leave_out"
        )
        kept[place] = {name: mask.cpu() for name, mask in pruned.masks.items()}
    assert all(torch.equal(kept[device][name], mask) for name, mask in kept[CPU].items())


def test_a_sweep_gives_the_same_masks_and_puts_every_weight_back(device):
    model = network(device)
    before = weights_of(model)
    counts = [int(sum(mask.sum() for mask in pruned.masks.values())) for pruned in sweep(model, (0.5, 0.9, 0.98))]
    assert counts == [int(sum(m.sum() for m in p.masks.values())) for p in sweep(network(CPU), (0.5, 0.9, 0.98))]
    assert all(torch.equal(one, other) for one, other in zip(weights_of(model), before, strict=True))


def test_masks_stay_through_training(device):
    model = network(device)
    pruned = one_shot(model, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=True)
    keep_masks(optimizer, pruned.masks, model)
    take_steps(model, optimizer, device, 3)
    parameters = dict(model.named_parameters())
    zeros = {name: int((parameters[name] == 0).sum()) for name in pruned.masks}
    removed = sum(parameters[name].numel() for name in pruned.masks) * pruned.sparsity
    assert sum(zeros.values()) >= round(removed)


def test_recalibration_equals_the_cpus(device):
    buffers = {}
    for place in (CPU, device):
        model = network(place)
        one_shot(model, 0.5)
        recalibrate(model, [batch(place)[0][:8], batch(place)[0][8:]])
        buffers[place] = [buffer.cpu().double() for buffer in model.buffers()]
    assert_close(buffers[device], buffers[CPU], 1e-5)


def test_the_trackers_rows_equal_the_cpus(device):
    pytest.importorskip("pyarrow", reason="rows are tables of pyarrow")
    tables = {}
    for place in (CPU, device):
        model = network(place)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        tracker = GradientTracker(("gradients", "weights", "updates"))
        trimtab.attach(optimizer, tracker, model=model)
        take_steps(model, optimizer, place, 3)
        tables[place] = tracker.table().to_pylist()
    assert len(tables[device]) == len(tables[CPU]) > 0
    for found, expected in zip(tables[device], tables[CPU], strict=True):
        assert (found["step"], found["layer"]) == (expected["step"], expected["layer"])
        for name in ("std", "norm", "max_abs"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-8), (found["layer"], name)


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_curvature_equals_the_cpus(kind, device):
    values = {}
    for place in (CPU, device):
        model = network(place).double()
        images, labels = batch(place)
        matrix = kind(Objective(model, nn.functional.cross_entropy, (images.double(), labels)))
        vector = torch.linspace(-1, 1, matrix.objective.size, dtype=torch.float64, device=place)
        values[place] = [
            (matrix @ vector).cpu(),
            torch.tensor(top_eigenvalues(matrix, k=1, tolerance=1e-6).values).cpu().double(),
        ]
    assert_close(values[device], values[CPU], 1e-6)


def test_observers_leave_the_devices_random_numbers_alone(device):
    model = network(device)
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    objective = Objective(model, nn.functional.cross_entropy, batch(device))
    section(objective, random_directions(objective, 1, seed=0), points=3)
    after = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    assert torch.equal(state, after)


def test_a_sparse_file_comes_back_to_the_device_bit_for_bit(device, tmp_path):
    model = network(device)
    one_shot(model, 0.9)
    save_sparse(model, tmp_path / "net.safetensors")
    other = network(device)
    load_sparse(tmp_path / "net.safetensors", other)
    for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)
        assert two.device.type == device.type


def test_csr_layers_agree_with_dense_ones(device):
    torch.manual_seed(0)
    dense = nn.Linear(64, 48).to(device).eval()
    one_shot(dense, 0.8)
    x = torch.randn(8, 64, device=device)
    torch.testing.assert_close(CsrLinear(dense)(x), dense(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_of_four_pruned_weights_run_on_sparse_kernels(dtype, gpu):
    if torch.cuda.get_device_capability(gpu) < (8, 0):
        pytest.skip("2:4 kernels need compute capability 8.0")
    torch.manual_seed(0)
    dense = nn.Linear(256, 256, bias=False, device=gpu, dtype=dtype)
    one_shot(dense, pattern="2:4")
    x = torch.randn(128, 256, device=gpu, dtype=dtype)
    packed = torch.sparse.to_sparse_semi_structured(dense.weight.detach())
    torch.testing.assert_close(nn.functional.linear(x, packed), dense(x), rtol=2e-2, atol=2e-2)


def test_a_run_is_trained_pruned_and_read_back(device, tmp_path):
    pytest.importorskip("sklearn", reason="the digits come from scikit-learn")
    recipe = tiny_recipe(method="l1+cram+", device=device.type, epochs=1, precision__autocast="bf16")
    folder = train(recipe, tmp_path / "run")
    rows = prune_run(folder).rows
    assert sorted({row.sparsity for row in rows}) == pytest.approx([0.0, 0.5, 0.9], abs=1e-3)
    again = train(recipe, tmp_path / "again")
    pair = [trained_model(one, load_data(recipe)).state_dict().values() for one in (folder, again)]
    assert all(torch.equal(one, two) for one, two in zip(*pair, strict=True))


def test_the_device_is_the_one_that_was_asked_for(device):
    assert network(device).head[0].weight.device.type == os.environ.get("TRIMTAB_TEST_DEVICE", "cuda")
