"""The layers of a network that multiply by a weight, and products with weights elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from trimtab.parameters import Entry
from trimtab.parameters.layouts import is_linear
from trimtab.parameters.wrappers import own_modules

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)

_NOT_CALLED = nn.modules.linear.NonDynamicallyQuantizableLinear  # inside nn.MultiheadAttention, never called itself


def _is_matrix(parameter: Tensor) -> bool:
    return sum(size > 1 for size in parameter.shape) > 1


def layers_of(model: nn.Module, chosen: Sequence[Entry]) -> tuple[dict[str, nn.Module], dict[str, nn.Module], str]:
    """Linear and convolution layers whose weight is chosen, by name; modules with other chosen matrices; those in words."""
    held: dict[int, list[Entry]] = {}
    for entry in chosen:
        for owner in entry.owners:
            held.setdefault(id(owner), []).append(entry)
    layers: dict[str, nn.Module] = {}
    others: dict[str, nn.Module] = {}
    words: list[str] = []
    for name, module in own_modules(model):
        weights = [entry for entry in held.get(id(module), ()) if entry.role in ("weight", "unknown")]
        called = (isinstance(module, LAYERS) or is_linear(module)) and not isinstance(module, _NOT_CALLED)
        if called and any(entry.parameter.ndim > 1 for entry in weights):
            layers[name] = module
        elif not called and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            labels = [entry.name.removeprefix(f"{name}.") for entry in weights if _is_matrix(entry.parameter)]
            if labels:
                others[name] = module
                words.append(f"{name or 'the model itself'} ({type(module).__name__}: {', '.join(labels)})")
    more = f" and {len(words) - 8} more" if len(words) > 8 else ""
    return layers, others, f"{'; '.join(words[:8])}{more}"
