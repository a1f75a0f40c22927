"""Masks from zeros, on other models, kept while training; LoRA merged into a sparse base."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import trimtab
from tests.pruning.along import attached, sgd, steps
from tests.pruning.nets import Small, Tied, bits
from trimtab.pruning import KeepMasks, apply_masks, masks_of, merge_lora, one_shot


def test_masks_come_from_the_zeros_that_are_there() -> None:
    net = Small()
    pruned = one_shot(net, 0.6, scope="layer")
    found = masks_of(net)
    assert found.keys() == pruned.masks.keys()
    assert all(torch.equal(found[name], mask) for name, mask in pruned.masks.items())
    whole = Small()
    whole.head.weight.data[0, 0] = 0
    whole.head.weight.data[0, 1] = float("nan")
    assert list(masks_of(whole)) == ["head.weight"], "a weight without zeros has no mask"
    assert int((~masks_of(whole)["head.weight"]).sum()) == 1, "NaN is not zero"
    with pytest.raises(ValueError, match="none of the 3 prunable weights holds a zero"):
        masks_of(Small())


def test_masks_go_onto_an_average_a_copy_and_tied_weights() -> None:
    net = Small()
    averaged = AveragedModel(copy.deepcopy(net))
    pruned = one_shot(net, 0.5)
    assert apply_masks(averaged, pruned.masks) == 255
    assert all(torch.equal(averaged.module.get_parameter(n), net.get_parameter(n)) for n in pruned.masks)
    assert apply_masks(averaged, pruned.masks) == 0
    tied = Tied()
    mask = torch.ones(8, 4, dtype=torch.bool)
    mask[0] = False
    assert apply_masks(tied, {"head.weight": mask}) == 4
    assert int((tied.embedding.weight == 0).sum()) == 4


def test_masks_that_do_not_fit_change_nothing() -> None:
    net = Small()
    before, good = bits(net), torch.zeros(5, 6, dtype=torch.bool)
    for masks, error, message in (
        (
            {"head.weight": good, "tail.weight": good},
            ValueError,
            "1 of 2 masks belong to no weight of the model: tail.weight",
        ),
        ({"head.weight": good, "conv.weight": good}, ValueError, r"'conv.weight' has shape \(5, 6\)"),
        ({"head.weight": good.float()}, TypeError, "must be bool"),
    ):
        with pytest.raises(error, match=message):
            apply_masks(net, masks)
    assert bits(net) == before


def test_a_lever_without_masks_keeps_the_zeros_it_finds() -> None:
    net = Small()
    one_shot(net, 0.5)
    there = masks_of(net)
    optimizer, handle = attached(net, KeepMasks(), sgd(net))
    steps(net, optimizer, range(3))
    assert all(bool((net.get_parameter(name)[~mask] == 0).all()) for name, mask in there.items())
    other = KeepMasks()
    other.load_state_dict(handle.levers[0].state_dict())
    trimtab.attach(sgd(net), other, model=net)
    assert all(torch.equal(other.masks[name], mask) for name, mask in there.items())
    with pytest.raises(ValueError, match="nothing to keep"):
        attached(Small(), KeepMasks())


def test_a_callback_keeps_zeros_or_masks(tmp_path: Any) -> None:
    if find_spec("transformers") is None:
        pytest.skip("needs the extra `transformers`")
    from tests.adapters import hugging_face_models as tiny

    for given in ("zeros", "masks"):
        model = tiny.language_model()
        pruned = one_shot(model, 0.5)
        callback = trimtab.adapters.hugging_face.TrimtabCallback(masks="zeros" if given == "zeros" else pruned.masks)
        tiny.trainer(tmp_path, callback, model=model).train()
        for name, mask in pruned.masks.items():
            assert bool((model.get_parameter(name)[~mask] == 0).all())
    with pytest.raises(ValueError, match="or 'zeros', got 'all'"):
        trimtab.adapters.hugging_face.TrimtabCallback(masks="all")


@pytest.fixture
def tuned() -> tuple[nn.Module, dict[str, torch.Tensor], Any]:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    masks = one_shot(base, 0.5, scope="layer").masks
    before = {name: base.get_parameter(name).detach().clone() for name in masks}
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2"], init_lora_weights=False)
    )
    return model, before, masks


def test_a_merge_keeps_zeros_and_says_what_fell_on_them(tuned: Any) -> None:
    model, before, masks = tuned
    layers = {name: model.base_model.model.get_submodule(name) for name in ("0", "2")}
    products = {
        name: 3.0 * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
        for name, layer in layers.items()
    }
    merged = merge_lora(model)
    for (name, sparsity, lost), product in zip(merged.rows, products.values(), strict=True):
        weight, mask = merged.model.get_submodule(name).weight, masks[f"{name}.weight"]
        torch.testing.assert_close(weight.detach(), before[f"{name}.weight"] + mask * product)
        assert bool((weight[~mask] == 0).all())
        assert sparsity == 0.5
        assert lost == pytest.approx(float((product * ~mask).norm() / product.norm()), rel=1e-5)
    assert 0 < merged.lost < 1
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    assert merged.records()[0]["name"] == "0"
    with pytest.raises(ValueError, match="has no LoRA layers"):
        merge_lora(merged.model)


def test_what_cannot_be_merged_is_refused_and_stays(tuned: Any) -> None:
    model, _, masks = tuned
    before = bits(model)
    with pytest.raises(ValueError, match=r"'9.weight' is of no layer with adapters"):
        merge_lora(model, {"9.weight": masks["0.weight"]})
    with pytest.raises(ValueError, match=r"must be bool of shape \(4, 8\)"):
        merge_lora(model, {"2.weight": masks["0.weight"]})
    assert bits(model) == before
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged already"):
        merge_lora(model)
    peft = pytest.importorskip("peft")
    dora = peft.get_peft_model(
        nn.Sequential(nn.Linear(4, 4)), peft.LoraConfig(r=2, target_modules=["0"], use_dora=True)
    )
    with pytest.raises(ValueError, match="no plain LoRA"):
        merge_lora(dora)
