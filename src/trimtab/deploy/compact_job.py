"""What of a network goes into a compact file, and the candidate that is prepared and measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trimtab.checks import one_of, whole
from trimtab.deploy.compact_quantise import KEPT_BITS, Quantised, Scales, quantise, rounded
from trimtab.deploy.compact_writer import Written, written
from trimtab.deploy.sparse_writer import Source, aliases_in, tensors_of
from trimtab.deploy.store_format import checked_metadata
from trimtab.parameters import entries
from trimtab.parameters.kinds import REAL
from trimtab.parameters.wrappers import load_own_state, own_state, unwrapped

PRECISIONS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
"""Significant bits."""


@dataclass
class Job:
    """What is to be written, and the candidate that stands for it where it must run.

    Attributes:
        state: all tensors, tied ones once; those of `shortened` with so many significant bits.
        axes: of the weights that are coded, the dimension of the channels.
    """

    state: dict[str, Tensor]
    extra: dict[str, Any]
    aliases: dict[str, str]
    axes: dict[str, int | None]
    scales: Scales
    shortened: dict[str, int]
    left_out: dict[str, str]
    user: dict[str, str]
    model: nn.Module | None
    prepare: Callable[[nn.Module], object] | None

    def candidate(self, weights: Mapping[str, Quantised]) -> nn.Module:
        """The network of these weights, all else as it was, then prepared."""
        assert self.model is not None
        values = {name: one.values for name, one in weights.items()}
        self._put({**self.state, **values})
        if self.prepare is not None:
            self.prepare(self.model)
            self._put({**self._tensors(), **values})
        return self.model

    def _tensors(self) -> dict[str, Tensor]:
        """Those of the candidate, as the file keeps them."""
        assert self.model is not None
        state = {name: tensor.clone() for name, tensor in own_state(self.model).items() if name not in self.extra}
        return state | {name: rounded(state[name], bits) for name, bits in self.shortened.items()}

    def _put(self, state: Mapping[str, Tensor]) -> None:
        assert self.model is not None
        whole_state: dict[str, Any] = {**self.extra, **state}
        load_own_state(self.model, whole_state | {alias: state[name] for alias, name in self.aliases.items()})

    def quantised(self, taken: Mapping[str, tuple[int, float]]) -> dict[str, Quantised]:
        """Every weight with its bits and sparsity."""
        return {name: self.one(name, *taken[name]) for name in self.axes}

    def one(self, name: str, bits: int, sparsity: float) -> Quantised:
        """A weight with these bits and this sparsity."""
        return quantise(name, self.state[name], bits, sparsity, self.axes[name], self.scales)

    def file(self, weights: Mapping[str, Quantised], *, prepared: bool = True) -> Written:
        """The bytes of the file; what `prepare` changed is in them, unless only the size is wanted (`prepared=False`)."""
        state: Mapping[str, Tensor] = self.state
        if self.prepare is not None and prepared:
            self.candidate(weights)
            state = self._tensors()
        rest = {name: tensor for name, tensor in state.items() if name not in weights and name not in self.aliases}
        return written(weights, rest, self.aliases, self.user, self.extra)


SHORT = ("weight", "bias", "running_mean", "running_var")
"""Names under which a state dict holds the small tensors of Linear, convolution and norm."""


def _weights_in(source: Source, state: Mapping[str, Tensor]) -> tuple[dict[str, int | None], dict[str, str], list[str]]:
    """Axis of the channels for each tensor that is coded, why the others are not, and which of them may be shortened."""
    if isinstance(source, nn.Module):
        listed = {entry.name: entry for entry in entries(unwrapped(source))}
        why = {name: entry.why or f"a {entry.role}" for name, entry in listed.items() if entry.role != "weight"}
        why |= {name: "a part of a computed weight" for name, entry in listed.items() if entry.computed is not None}
        axis_of = {name: entry.output_axis for name, entry in listed.items()}
        why |= {name: "a buffer" for name in state if name not in listed}
        short = [name for name, entry in listed.items() if entry.role in ("bias", "scale") and entry.computed is None]
        for prefix, module in unwrapped(source).named_modules():
            if isinstance(module, _BatchNorm):
                short += [f"{prefix}.{name}".lstrip(".") for name in SHORT[2:]]
    else:
        why = {
            name: f"{tensor.ndim} dimensions; a weight has 2 or more"
            for name, tensor in state.items()
            if tensor.ndim < 2
        }
        axis_of = dict.fromkeys(state, 0)
        short = [name for name in why if name.rpartition(".")[2] in SHORT]
    why |= {name: f"dtype {tensor.dtype}" for name, tensor in state.items() if tensor.dtype not in REAL}
    why |= {name: "empty" for name, tensor in state.items() if not tensor.numel()}
    axes = {name: axis_of[name] for name in state if name not in why}
    short = [name for name in short if name in state and state[name].dtype in REAL]
    return axes, {name: reason for name, reason in why.items() if name in state}, short


def job_of(
    source: Source,
    metadata: Mapping[str, str] | None = None,
    scales: Scales = "auto",
    prepare: Callable[[nn.Module], object] | None = None,
    kept_bits: int = KEPT_BITS,
) -> Job:
    """The job of writing `source`, checked; its tensors are copies.

    Raises:
        TypeError: an entry or metadata of a wrong kind.
        ValueError: no weight to code.
    """
    one_of("scales", scales, get_args(Scales))
    whole("kept_bits", kept_bits, 1, 53)
    user = checked_metadata(metadata)
    state, extra = tensors_of(source)
    aliases = aliases_in(state)
    held = {name: tensor.detach() for name, tensor in state.items() if name not in aliases}
    axes, left_out, short = _weights_in(source, held)
    if not axes:
        raise ValueError(
            f"nothing to code: none of the {len(state)} tensors is a weight; save_sparse keeps them as they are"
        )
    model = copy.deepcopy(unwrapped(source)).eval() if isinstance(source, nn.Module) else None
    shortened = {name: kept_bits for name in short if kept_bits < PRECISIONS[held[name].dtype]}
    held = {name: rounded(tensor, kept_bits) if name in shortened else tensor.clone() for name, tensor in held.items()}
    left_out |= {name: f"{left_out[name]}, in {kept_bits} significant bits" for name in shortened}
    return Job(held, extra, aliases, axes, scales, shortened, left_out, user, model, prepare)
