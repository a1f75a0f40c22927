"""InflectionProbe: layers where attention is settled and the gradient fades, which is where adapters are worth putting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from trimtab.checks import number, one_of, whole
from trimtab.observe.attention_entropy import AttentionEntropy
from trimtab.observe.untouched import uncompiled, untouched
from trimtab.parameters import unwrapped

if TYPE_CHECKING:
    import pyarrow as pa

Scale = Literal["log10", "linear"]


@dataclass(frozen=True)
class InflectionRow:
    """One layer.

    Attributes:
        layer: its name.
        entropy: of its attention, in nats; mean over examples, heads and queries.
        activation_gradient: `||dL / dh||`, h the layer's output.
        parameter_gradient: norm of the gradient by its trainable weights; 0 where there are none.
        ski: saturation index; its local maxima are the candidates.
    """

    layer: str
    entropy: float
    activation_gradient: float
    parameter_gradient: float
    ski: float


def ski(
    entropies: Sequence[float], gradients: Sequence[float], alpha: float = 0.5, scale: Scale = "log10"
) -> list[float]:
    """`alpha H + (1 - alpha) G` of each layer: H is 1 where the entropy is least and 0 where it is greatest, G likewise of the
    activation's gradient.

    Args:
        entropies, gradients: one of each layer; gradients above 0 for "log10".
        alpha: in [0, 1]. Default 0.5 [ours; the paper does not say].
        scale: whether gradients are compared by their logarithm ("log10", default) or as they are [ours].

    Raises:
        ValueError: numbers of layers differ, a gradient of 0 under "log10", or a setting out of range.

    Example:
        >>> [round(one, 2) for one in ski([2.0, 1.0, 1.5], [1e-1, 1e-3, 1e-2])]
        [0.0, 1.0, 0.5]
    """
    number("alpha", alpha, least=0, most=1)
    one_of("scale", scale, get_args(Scale))
    if len(entropies) != len(gradients) or not entropies:
        raise ValueError(f"one entropy and one gradient of each layer, got {len(entropies)} and {len(gradients)}")
    given = torch.tensor(list(gradients), dtype=torch.float64)
    if scale == "log10":
        if not bool((given > 0).all()):
            at = int((given <= 0).nonzero()[0])
            raise ValueError(f"the gradient of layer {at} is {float(given[at])}: no logarithm; use scale='linear'")
        given = given.log10()
    settled = _inverse(torch.tensor(list(entropies), dtype=torch.float64))
    found: list[float] = (alpha * settled + (1 - alpha) * _inverse(given)).tolist()
    return found


def _inverse(values: Tensor) -> Tensor:
    """1 at the least, 0 at the greatest; 0 throughout where all are equal [ours]."""
    low, high = values.min(), values.max()
    return torch.zeros_like(values) if low == high else (high - values) / (high - low)


def local_maxima(values: Sequence[float]) -> list[int]:
    """Places above their neighbours; the ends count, and of equal neighbours the first.

    Example:
        >>> local_maxima([3.0, 1.0, 2.0, 2.0, 0.0])
        [0, 2]
    """
    found = []
    for at, value in enumerate(values):
        after = next((one for one in values[at + 1 :] if one != value), float("-inf"))
        if (at == 0 or values[at - 1] < value) and after < value:
            found.append(at)
    return found


class InflectionProbe:
    """Entropy of attention, gradients and saturation index of every layer of a transformer, from one forward and backward pass.

    Looked at are modules that hold attention: the network is in evaluation mode meanwhile; weights, gradients, buffers, modes
    and random state are bit-equal afterwards. Attention is heard where `torch.nn.functional.scaled_dot_product_attention` is
    called (of Hugging Face models with `attn_implementation="sdpa"`) or `nn.MultiheadAttention` returns its weights; those of
    the fused kernel are computed once more.

    Args:
        model: the network.
        layers: names of the layers in order. Default: the members of the longest list of modules of one kind.
        alpha, scale: as of `ski`.

    Raises:
        ValueError: no such layers, or (at `run`) a layer without attention or without a gradient.

    Reference: arXiv 2511.00797, by its formulas; what they leave open is marked [ours] in `ski`.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        >>> probe = InflectionProbe(net)
        >>> rows = probe.run(torch.randn(2, 5, 8), lambda net, batch: net(batch).square().mean())
        >>> [row.layer for row in rows]
        ['layers.0', 'layers.1', 'layers.2']
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str] | None = None, alpha: float = 0.5, scale: Scale = "log10"
    ) -> None:
        self.model = unwrapped(model)
        self.alpha = number("alpha", alpha, least=0, most=1)
        one_of("scale", scale, get_args(Scale))
        self.scale: Scale = scale
        known = dict(self.model.named_modules())
        self.layers = tuple(_longest(known) if layers is None else layers)
        if missing := [name for name in self.layers if name not in known]:
            raise ValueError(f"the network has no layer {missing[0]!r}")
        self._rows: tuple[InflectionRow, ...] = ()

    def run(self, batch: Any, loss: Callable[[nn.Module, Any], Tensor]) -> tuple[InflectionRow, ...]:
        """Measure on a batch, `loss(model, batch)` being a number."""
        modules = [self.model.get_submodule(name) for name in self.layers]
        outputs: dict[int, Tensor] = {}

        def keep(at: int) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                outputs[at] = output if isinstance(output, Tensor) else output[0]

            return hook

        with untouched(self.model), uncompiled(self.model), torch.enable_grad(), _plain_attention():
            listener = AttentionEntropy(self.model)
            hooks = [module.register_forward_hook(keep(at)) for at, module in enumerate(modules)]
            try:
                value = loss(self.model, batch)
                entropies = listener.entropies()
                owned = [[one for one in module.parameters() if one.requires_grad] for module in modules]
                states = [outputs[at] for at in range(len(modules)) if at in outputs and outputs[at].requires_grad]
                if len(states) < len(modules):
                    raise ValueError("a layer was not run, or no gradient reaches it")
                wanted = [*states, *(one for part in owned for one in part)]
                slopes = iter(torch.autograd.grad(value, wanted, allow_unused=True))
            finally:
                for hook in hooks:
                    hook.remove()
                listener.unbind()
        sizes = [_norm([next(slopes)]) for _ in states]
        weights = [_norm([next(slopes) for _ in part]) for part in owned]
        inside = [_inside(name, entropies) for name in self.layers]
        indices = ski(inside, sizes, self.alpha, self.scale)
        self._rows = tuple(map(InflectionRow, self.layers, inside, sizes, weights, indices))
        return self._rows

    def candidates(self, k: int | None = None) -> list[str]:
        """Layers where the index has a local maximum, the greatest first; at most k.

        Raises:
            RuntimeError: nothing was measured yet.
        """
        if not self._rows:
            raise RuntimeError("nothing was measured yet: call run(batch, loss)")
        indices = [row.ski for row in self._rows]
        found = sorted(local_maxima(indices), key=lambda at: -indices[at])
        return [self._rows[at].layer for at in found[: None if k is None else whole("k", k, 1)]]

    def table(self, step: int = 0) -> pa.Table:
        """The last measurement as rows of step, layer, quantity, value."""
        import pyarrow as pa

        rows = [
            {"step": step, "layer": row.layer, "quantity": name, "value": value}
            for row in self._rows
            for name, value in asdict(row).items()
            if name != "layer"
        ]
        schema = [("step", pa.int64()), ("layer", pa.string()), ("quantity", pa.string()), ("value", pa.float64())]
        return pa.Table.from_pylist(rows, pa.schema(schema))


def _longest(modules: dict[str, nn.Module]) -> list[str]:
    """The members of the longest ModuleList or Sequential of one kind."""
    best: list[str] = []
    for name, module in modules.items():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len({type(one) for one in module}) == 1:
            members = [f"{name}.{at}".removeprefix(".") for at in range(len(module))]
            best = members if len(members) > len(best) else best
    if not best:
        raise ValueError("no list of layers of one kind was found: give their names, layers=[...]")
    return best


def _inside(layer: str, entropies: dict[str, float]) -> float:
    own = [value for name, value in entropies.items() if name == layer or name.startswith(f"{layer}.")]
    if not own:
        raise ValueError(
            f"no attention was heard in the layer {layer!r}: it must call torch.nn.functional.scaled_dot_product_attention "
            '(Hugging Face: attn_implementation="sdpa") or nn.MultiheadAttention'
        )
    return sum(own) / len(own)


def _norm(gradients: Sequence[Tensor | None]) -> float:
    total = [float(one.detach().double().square().sum()) for one in gradients if one is not None]
    return math.sqrt(sum(total))


class _plain_attention:  # noqa: N801, as a context manager of contextlib is named
    """torch's fast path of encoder layers off: it calls no function that can be heard."""

    def __enter__(self) -> None:
        self._was = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self._was)
