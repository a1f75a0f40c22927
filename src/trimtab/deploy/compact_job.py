"""What of a network goes into a compact file, and the candidate that is prepared and measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from trimtab.deploy.compact_quantise import Quantised, Scales, quantise, scale_axis
from trimtab.deploy.compact_writer import Written, written
from trimtab.deploy.sparse_writer import Source, aliases_in, tensors_of
from trimtab.deploy.store_format import checked_metadata
from trimtab.parameters import entries
from trimtab.parameters.kinds import REAL
from trimtab.parameters.wrappers import load_own_state, own_state, unwrapped


@dataclass
class Job:
    """What is to be written, and the candidate that stands for it where it must run."""

    state: dict[str, Tensor]
    extra: dict[str, Any]
    aliases: dict[str, str]
    axes: dict[str, int | None]
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
        assert self.model is not None
        return {name: tensor.clone() for name, tensor in own_state(self.model).items() if name not in self.extra}

    def _put(self, state: Mapping[str, Tensor]) -> None:
        assert self.model is not None
        whole_state: dict[str, Any] = {**self.extra, **state}
        load_own_state(self.model, whole_state | {alias: state[name] for alias, name in self.aliases.items()})

    def quantised(self, taken: Mapping[str, tuple[int, float]]) -> dict[str, Quantised]:
        """Every weight with its bits and sparsity."""
        return {name: quantise(name, self.state[name], *taken[name], axis=axis) for name, axis in self.axes.items()}

    def file(self, weights: Mapping[str, Quantised]) -> Written:
        """The bytes of the file; what `prepare` changed is in them."""
        state: Mapping[str, Tensor] = self.state
        if self.prepare is not None:
            self.candidate(weights)
            state = self._tensors()
        rest = {name: tensor for name, tensor in state.items() if name not in weights and name not in self.aliases}
        return written(weights, rest, self.aliases, self.user, self.extra)


def _weights_in(
    source: Source, state: Mapping[str, Tensor], scales: Scales
) -> tuple[dict[str, int | None], dict[str, str]]:
    """Axis of the scales for each tensor that is coded, and why the others are kept whole."""
    if isinstance(source, nn.Module):
        listed = {entry.name: entry for entry in entries(unwrapped(source))}
        why = {name: entry.why or f"a {entry.role}" for name, entry in listed.items() if entry.role != "weight"}
        why |= {name: "a part of a computed weight" for name, entry in listed.items() if entry.computed is not None}
        axis_of = {name: entry.output_axis for name, entry in listed.items()}
        why |= {name: "a buffer" for name in state if name not in listed}
    else:
        why = {
            name: f"{tensor.ndim} dimensions; a weight has 2 or more"
            for name, tensor in state.items()
            if tensor.ndim < 2
        }
        axis_of = dict.fromkeys(state, 0)
    why |= {name: f"dtype {tensor.dtype}" for name, tensor in state.items() if tensor.dtype not in REAL}
    why |= {name: "empty" for name, tensor in state.items() if not tensor.numel()}
    axes = {name: scale_axis(tensor, axis_of[name], scales) for name, tensor in state.items() if name not in why}
    return axes, {name: reason for name, reason in why.items() if name in state}


def job_of(
    source: Source, metadata: Mapping[str, str] | None, scales: Scales, prepare: Callable[[nn.Module], object] | None
) -> Job:
    """The job of writing `source`, checked; its tensors are copies.

    Raises:
        TypeError: an entry or metadata of a wrong kind.
        ValueError: no weight to code.
    """
    user = checked_metadata(metadata)
    state, extra = tensors_of(source)
    aliases = aliases_in(state)
    held = {name: tensor.detach() for name, tensor in state.items() if name not in aliases}
    axes, left_out = _weights_in(source, held, scales)
    if not axes:
        raise ValueError(
            f"nothing to code: none of the {len(state)} tensors is a weight; save_sparse keeps them as they are"
        )
    model = copy.deepcopy(unwrapped(source)).eval() if isinstance(source, nn.Module) else None
    held = {name: tensor.clone() for name, tensor in held.items()}
    return Job(held, extra, aliases, axes, left_out, user, model, prepare)
