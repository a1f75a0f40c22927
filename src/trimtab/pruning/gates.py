"""Gates on the heads and channels of a network that is not touched itself, until they are closed for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import below_one, flag, number
from trimtab.inexact import recomputing
from trimtab.parameters import unwrapped
from trimtab.parameters.arguments import Arguments, layer_input, with_input
from trimtab.parameters.kinds import check_finite
from trimtab.pruning.gate_places import Place, channel_places, head_places, input_dim, weight_of
from trimtab.pruning.graph import marked
from trimtab.pruning.hard_concrete import HardConcreteGate, PenaltyKind
from trimtab.tensors.selection import removed_count


class Gates(nn.Module):
    """Gates on a network, one vector for each group of heads or channels; made by `gate_heads` and `gate_channels`.

    The network keeps its modules, parameters and names. Hooks multiply the inputs of the layers that read the gated parts. All
    places draw once in each forward pass of the network; a layer that is called by itself has a draw of its own. Train
    `gates.parameters()` alone: the module's own train and eval decide whether gates are drawn, those of the network are its own
    affair.

    Attributes:
        places: `Place`s: the name of each, its kind, number of gates, and the layers that read it.
        left_out: groups without gates, each with the reason.
        closed: per place the positions of the gates that `finalize` closed; empty before.

    Example:
        >>> from trimtab.models.vit import VisionTransformer
        >>> net = VisionTransformer(num_classes=10, image_size=8, dim=16, depth=1, heads=4).eval()
        >>> gates = gate_heads(net)
        >>> gates
        Gates(4 heads in 1 place)
        >>> gates.finalize(sparsity=0.5)
        {'layers.0.attention': [0, 1]}
    """

    def __init__(
        self,
        model: nn.Module,
        places: Sequence[Place],
        left_out: Sequence[tuple[str, str]],
        settings: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.places, self.left_out = tuple(places), list(left_out)
        self.closed: dict[str, list[int]] = {}
        self._network = (unwrapped(model),)  # in a tuple: no submodule
        self.gates = nn.ModuleDict()
        for place in places:
            weight = weight_of(self.network, place.readers[0]).parameter
            self.gates[_key(place.name)] = HardConcreteGate(place.size, **settings).to(weight.device)
        self._drawn: dict[str, Tensor] = {}
        self._off = self._inside = False
        self._hooks: list[Any] = [
            self.network.register_forward_pre_hook(self._drawing()),
            self.network.register_forward_hook(self._leaving(), always_call=True),
        ]
        for place in places:
            for reader in place.readers:
                self._hooks.append(
                    self.network.get_submodule(reader).register_forward_pre_hook(
                        self._gating(place.name), with_kwargs=True
                    )
                )

    @property
    def attached(self) -> bool:
        """Whether the gates act: neither finalized nor removed."""
        return bool(self._hooks)

    @property
    def network(self) -> nn.Module:
        """The gated network."""
        return self._network[0]

    def gate(self, name: str) -> HardConcreteGate:
        """The gates of a place."""
        found = self.gates[_key(name)]
        assert isinstance(found, HardConcreteGate)
        return found

    def _drawing(self) -> Callable[..., None]:
        def draw(*_: Any) -> None:
            self._inside = True
            if not self._off:  # without gates: those drawn last may be asked for again, by checkpointing
                self._drawn = {place.name: self.gate(place.name)() for place in self.places}

        return marked(draw)

    def _leaving(self) -> Callable[..., None]:
        def leave(*_: Any) -> None:
            self._inside = False

        return marked(leave)

    def _gating(self, name: str) -> Callable[..., Arguments | None]:
        def gated(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Arguments | None:
            x, dim = layer_input(args, given), input_dim(module)
            if self._off or x is None:
                return None
            known = name in self._drawn and (self._inside or recomputing())
            gate = (self._drawn[name] if known else self.gate(name)()).to(x.dtype)  # a layer called by itself draws
            gate = gate.repeat_interleave(x.shape[dim] // len(gate))
            return with_input(args, given, x * (gate if dim == -1 else gate.view(-1, *(1 for _ in range(x.ndim - 2)))))

        return marked(gated)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within the block the network computes without gates: the teacher."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def penalty(self, kind: PenaltyKind = "l0", *, mean: bool = True) -> Tensor:
        """The penalties of all places, shape ().

        Args:
            kind: "l0" or "l1", as in `HardConcreteGate.penalty`.
            mean: of every place the mean over its gates, and of these the mean, so that wide layers do not outweigh narrow
                ones [ours]; False: the sum over all gates ("l1": over the places).
        """
        flag("mean", mean)
        found = []
        for place in self.places:
            gate = self.gate(place.name)
            found.append(gate.penalty(kind) / (place.size if mean and kind == "l0" else 1))
        total = torch.stack(found).sum()
        return total / len(found) if mean else total

    def values(self) -> dict[str, Tensor]:
        """The gates of each place without noise."""
        with torch.no_grad():
            return {place.name: self.gate(place.name).evaluated() for place in self.places}

    @torch.no_grad()
    def finalize(self, threshold: float = 0.0, sparsity: float | None = None) -> dict[str, list[int]]:
        """Put the evaluated gates into the weights that read them, and take the hooks off; the network computes as it did.

        Args:
            threshold: gates at or below it are closed: their inputs get weight 0. Default 0: those that are closed already.
            sparsity: close exactly `floor(sparsity n + 0.5)` of the n gates instead, those with the smallest alpha, ties by
                position; in [0, 1). At least one of each place stays; then others go.

        Returns:
            `closed`: per place the positions of closed gates, for `trimtab.deploy.remove_gated`. What stays is multiplied by
            its gate's value.

        Raises:
            ValueError: a number out of range, a gate that is NaN (named), more gates to close than there may, or it was
                finalized or removed before. Nothing is changed then.
        """
        if not self._hooks:
            raise ValueError("these gates were finalized or removed before")
        number("threshold", threshold, least=0, below=1)
        for place in self.places:
            if bool(self.gate(place.name).alpha.isnan().any()):
                raise ValueError(f"the gates of {place.name} hold NaN")
        closed = self._below(threshold) if sparsity is None else self._smallest(below_one("sparsity", sparsity))
        for place in self.places:
            gate = self.gate(place.name).evaluated()
            gate[closed[place.name]] = 0
            for reader in place.readers:
                entry = weight_of(self.network, reader)
                weight, axis = entry.parameter, entry.input_axis or 0
                wide = gate.repeat_interleave(weight.shape[axis] // len(gate)).to(weight.dtype)
                shape = [1] * weight.ndim
                shape[axis] = -1
                weight.mul_(wide.view(shape))
        self.closed = {name: gone for name, gone in closed.items() if gone}
        self.remove()
        return self.closed

    def _below(self, threshold: float) -> dict[str, list[int]]:
        return {name: (values <= threshold).nonzero().flatten().tolist() for name, values in self.values().items()}

    def _smallest(self, sparsity: float) -> dict[str, list[int]]:
        alphas = {place.name: self.gate(place.name).alpha.double().tolist() for place in self.places}
        count = removed_count(sparsity, sum(map(len, alphas.values())))
        order = []
        for number_, (name, values) in enumerate(alphas.items()):
            ranked = sorted(range(len(values)), key=lambda at, own=values: (own[at], at))  # type: ignore[misc]
            order += [(values[at], number_, at, name) for at in ranked[:-1]]  # the largest stays
        if count > len(order):
            raise ValueError(
                f"{count} of {count_of(self.places)} gates cannot close while each of {len(alphas)} places keeps one; at most "
                f"{len(order)}"
            )
        closed: dict[str, list[int]] = {name: [] for name in alphas}
        for *_, at, name in sorted(order)[:count]:
            closed[name].append(at)
        return {name: sorted(gone) for name, gone in closed.items()}

    def remove(self) -> None:
        """Take the hooks off; the network is as it was without gates (unless they were finalized)."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._drawn = [], {}

    def __repr__(self) -> str:
        kinds = "/".join(dict.fromkeys(place.kind for place in self.places))
        places = f"{len(self.places)} place{'s' if len(self.places) > 1 else ''}"
        return f"Gates({count_of(self.places)} {kinds} in {places})"


def _key(name: str) -> str:
    return name.replace(".", "/") or "/"


def count_of(places: Sequence[Place]) -> int:
    """How many gates there are."""
    return sum(place.size for place in places)


def _made(
    model: nn.Module, found: tuple[list[Place], list[tuple[str, str]]], what: str, settings: Mapping[str, Any]
) -> Gates:
    places, left_out = found
    if not places:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out[:5])
        raise ValueError(f"{type(model).__name__} has no {what} that gates fit ({reasons or 'none is found'})")
    return Gates(model, places, left_out, settings)


def gate_heads(
    model: nn.Module, include: Sequence[str] = ("*",), *, outputs: Mapping[str, int] | None = None, **settings: Any
) -> Gates:
    """Gates on the heads of every attention: each multiplies what one head hands to the layer that reads the heads.

    Attention modules are known by their names: "attention" in the class, a number of heads (`num_heads`, ..), a linear layer
    that reads them (`out`, `o_proj`, ..).

    Args:
        model: stays as it is.
        include: shell patterns of the attention modules. Default all.
        outputs: where names tell nothing: patterns of the linear layers that read heads, each with the number of heads. Those
            alone are gated then.
        settings: of `HardConcreteGate`.

    Raises:
        ValueError: no attention is found, a gate on a tied weight, or heads that do not divide the inputs.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
        >>> gate_heads(net, outputs={"1": 3})
        Gates(3 heads in 1 place)
    """
    net = unwrapped(model)
    return _made(net, head_places(net, include, outputs or {}), "attention heads", settings)


def gate_channels(
    model: nn.Module, example: Tensor, include: Sequence[str] = ("*",), exclude: Sequence[str] = (), **settings: Any
) -> Gates:
    """Gates on channels and neurons: each multiplies the inputs that the layers behind read of one channel.

    torch-pruning finds which layers write and read a channel. A group gets gates where a network that does not read a channel
    computes the same as one without it, which is tried on copies: neurons between two linear layers, channels inside a residual
    block and along it, not what a LayerNorm averages over, nor single numbers of attention heads (`gate_heads`).

    Args:
        model: stays as it is.
        example: an input with at least one row.
        include, exclude: shell patterns of the first layer of a group; of `exclude` also of the layers that read it.
        settings: of `HardConcreteGate`.

    Raises:
        ImportError: torch-pruning is not installed.
        ValueError: no group fits (each with its reason), a gate on a tied weight, or parameters that are NaN, infinite or on
            the meta device (named).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> gate_channels(net, torch.randn(2, 4))  # doctest: +SKIP
        Gates(6 channels in 1 place)
    """
    net = unwrapped(model)
    check_finite(net)
    return _made(net, channel_places(net, example, include, exclude), "channels", settings)
