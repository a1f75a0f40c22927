"""Adapters of low rank merged into a sparse network that stays sparse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.frames import Tabular


@dataclass(frozen=True, repr=False)
class MergedLora(Tabular):
    """What `merge_lora` did.

    Attributes:
        model: the network without adapters.
        rows: per layer its name, the fraction of zeros, and what the mask took from the product: `lost` is
            `||(1 - M) D|| / ||D||` in the Frobenius norm, 0 for a dense layer.
    """

    model: nn.Module
    rows: tuple[tuple[str, float, float], ...]

    @property
    def lost(self) -> float:
        """The largest `lost` of a layer."""
        return max(lost for _, _, lost in self.rows)

    def records(self) -> list[dict[str, Any]]:
        """One per layer: `name`, `sparsity`, `lost`."""
        return [{"name": name, "sparsity": sparsity, "lost": lost} for name, sparsity, lost in self.rows]

    def _title(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        return f"MergedLora({len(self.rows)} layers; at most {self.lost:.1%} of a product fell on zeros)"


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers with adapters, as peft makes them: a base layer, matrices A and B, and the product they stand for."""
    for name, module in model.named_modules():
        if all(hasattr(module, own) for own in ("base_layer", "lora_A", "lora_B", "get_delta_weight")):
            yield name, module


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _product(name: str, layer: Any) -> Tensor:
    """The sum of a layer's active products; ValueError where a merge is not that sum."""
    if layer.merged:
        raise ValueError(f"the adapters of {name} are merged already: the zeros are lost; unmerge them first")
    weight = layer.base_layer.weight
    if not weight.is_floating_point():
        raise ValueError(f"{name} holds {weight.dtype}: a quantised layer takes no product; dequantise it first")
    held = {*layer.lora_A.keys(), *getattr(layer, "lora_embedding_A", {}).keys()}
    active = [adapter for adapter in layer.active_adapters if adapter in held]
    for adapter in active:
        if getattr(layer, "use_dora", {}).get(adapter) or adapter in getattr(layer, "lora_variant", {}):
            raise ValueError(f"adapter {adapter!r} of {name} is no plain LoRA (DoRA and its kin rescale the weight)")
        if getattr(layer, "lora_bias", {}).get(adapter):
            raise ValueError(f"adapter {adapter!r} of {name} has a bias of its own, which this merge does not move")
    total = torch.zeros_like(weight)
    for adapter in active:
        total += layer.get_delta_weight(adapter).to(weight.dtype)
    return total


@torch.no_grad()
def merge_lora(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> MergedLora:
    """Merge a peft model's LoRA adapters into its sparse base, and keep every zero: `W + M (*) (scale B A)`.

    A plain merge adds a dense product and the zeros are gone. Here the product is masked, and it is said what that costs: the
    part of each product that fell on zeros. Where this is much, prune again after a plain merge, or tune with the zeros kept
    (`KeepMasks`) and no adapters.

    Args:
        model: what `peft.get_peft_model` returned; its base and adapters are changed.
        masks: per weight of the base (`"h.0.attn.c_attn.weight"`) a bool tensor, True where it stays. Default: the base's own
            zeros.

    Returns:
        A `MergedLora` with the network without adapters.

    Raises:
        ValueError: no adapters, merged ones, DoRA or an adapter's own bias, a quantised base, or masks that fit no layer.
            Nothing is changed then.

    Example::

        pruned = trimtab.pruning.one_shot(base, 0.5)
        tuned = peft.get_peft_model(base, peft.LoraConfig(target_modules=["c_attn"]))
        ...                                                 # your fine-tuning loop
        merged = trimtab.pruning.merge_lora(tuned)
        print(merged.table())
        merged.model.save_pretrained("tuned")
    """
    layers = {_plain(name): layer for name, layer in _adapted(model)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no LoRA layers (peft.get_peft_model makes them)")
    if not callable(unload := getattr(model, "unload", None)):
        raise ValueError(f"{type(model).__name__} is no peft model: give what peft.get_peft_model returned")
    given = dict(masks or {})
    known = {f"{name}.weight": layer.base_layer.weight for name, layer in layers.items()}
    for name, mask in given.items():
        if name not in known:
            raise ValueError(f"mask {name!r} is of no layer with adapters; these are {', '.join(list(known)[:5])}")
        if mask.dtype != torch.bool or mask.shape != known[name].shape:
            raise ValueError(
                f"mask {name!r} must be bool of shape {tuple(known[name].shape)}, got {mask.dtype} {tuple(mask.shape)}"
            )
    products = {name: _product(name, layer) for name, layer in layers.items()}
    rows = []
    for name, layer in layers.items():
        weight, product = layer.base_layer.weight, products[name]
        own = given.get(f"{name}.weight")
        kept = weight != 0 if own is None else own.to(weight.device)
        whole = torch.linalg.vector_norm(product, dtype=torch.float32)
        off = torch.linalg.vector_norm(product.masked_fill(kept, 0), dtype=torch.float32)
        weight.add_(product.masked_fill_(~kept, 0)).masked_fill_(~kept, 0)
        rows.append((name, 1 - float(kept.float().mean()), float(off / whole) if whole > 0 else 0.0))
    return MergedLora(unload(), tuple(rows))
