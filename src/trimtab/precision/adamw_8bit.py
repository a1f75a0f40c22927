"""AdamW8bit: AdamW with moments in a byte each, one parameter's in floats at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import flag, non_negative, positive, whole
from trimtab.collectives import local_part
from trimtab.precision.code_book import Coder, Codes, check_block, decode, encode

MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""Whether each has a sign."""


class AdamW8bit(torch.optim.Optimizer):
    """AdamW whose moments are codes of the dynamic map (arXiv 2110.02861); the step itself is computed in float32.

        m, v <- decoded;   m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        w <- (1 - lr decay) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps);   codes of m, v

    As `EightBitState` on `torch.optim.AdamW`, but that each parameter's moments are decoded, used and encoded in turn: no more
    than one tensor's are ever in floats, also during the step, and `state_dict` holds all. A checkpoint of
    `torch.optim.AdamW` loads into it (its moments are encoded), `to_float` gives one back.

    Args:
        params: parameters or groups.
        lr, betas, eps, weight_decay: default 1e-3, (0.9, 0.999), 1e-8, 0.01, those of torch.
        block: entries that share a scale; default 256.
        min_size: moments of smaller tensors stay in float32. Default 4096 (paper).
        floor: numbers above 0 never become 0; default True [ours], as for `EightBitState`.

    Raises:
        ValueError: a number out of range.
        TypeError: (at the step) a sparse gradient, a complex parameter.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(64, 64))
        >>> optimizer = AdamW8bit([weight], lr=0.1)
        >>> weight.grad = torch.ones(64, 64)
        >>> optimizer.step()
        >>> optimizer.state[weight]["exp_avg"].dtype, round(weight[0, 0].item(), 4)
        (torch.uint8, -0.1)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        block: int = 256,
        min_size: int = 4096,
        floor: bool = True,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "block": block, "min_size": min_size,
            "floor": floor,
        }  # fmt: skip
        super().__init__(params, _checked(defaults))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what it sets itself is checked as the constructor's settings are."""
        super().add_param_group({**param_group, **_checked(param_group)})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, parameter by parameter."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [(group, one) for group in self.param_groups for one in group["params"] if one.grad is not None]
        for _, parameter in moving:  # before any of them moves
            if parameter.grad is None or parameter.grad.layout is not torch.strided or parameter.is_complex():
                raise TypeError(f"AdamW8bit takes dense gradients of real parameters, got one of {parameter.dtype}")
        for group, parameter in moving:
            self._step(group, parameter, parameter.grad)
        return loss

    def _step(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        weight, gradient = local_part(parameter), local_part(gradient)
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        flat, slopes = weight.reshape(-1), gradient.reshape(-1)
        if parameter.numel() < group["min_size"]:
            moments = [self._read(group, parameter, name).reshape(-1) for name in MOMENTS]
            self._update(group, state["step"], flat, slopes, *moments)
            state.update({name: moment.view(weight.shape) for name, moment in zip(MOMENTS, moments, strict=True)})
        else:
            self._update_codes(group, state, flat, slopes)
        if flat.data_ptr() != weight.data_ptr():  # a layout without a flat view
            weight.copy_(flat.view(weight.shape))

    def _update_codes(self, group: dict[str, Any], state: dict[str, Any], flat: Tensor, slopes: Tensor) -> None:
        """A stretch after the other, so that its numbers stay in the processor's cache between decoding and encoding."""
        block, device = group["block"], flat.device
        # not made by __init__, which a copy of a torch optimizer does not run
        known: dict[Any, tuple[list[Coder], list[Tensor]]] = self.__dict__.setdefault("_coders", {})
        key = (device, block, group["floor"])
        if key not in known:
            pair = [
                Coder(block=block, signed=signed, floor=group["floor"], device=device) for signed in MOMENTS.values()
            ]
            known[key] = (pair, [torch.empty(pair[0].size, device=device) for _ in MOMENTS])
        coders, buffers = known[key]
        for name in MOMENTS:
            if name not in state:
                state[name] = torch.zeros(len(flat), dtype=torch.uint8, device=device)
                state[f"{name}_absmax"] = torch.zeros(-(-len(flat) // block), device=device)
        for start in range(0, len(flat), coders[0].size):
            part = slice(start, min(start + coders[0].size, len(flat)))
            first = slice(start // block, -(-part.stop // block))
            here = [buffer[: part.stop - start] for buffer in buffers]
            kept = [(state[name][part], state[f"{name}_absmax"][first]) for name in MOMENTS]
            for coder, (codes, absmax), moment in zip(coders, kept, here, strict=True):
                coder.decode(codes, absmax, moment)
            self._update(group, state["step"], flat[part], slopes[part], *here)
            for coder, (codes, absmax), moment in zip(coders, kept, here, strict=True):
                coder.encode(moment, codes, absmax)

    @staticmethod
    def _update(group: dict[str, Any], step: int, flat: Tensor, slopes: Tensor, first: Tensor, second: Tensor) -> None:
        """The formula, in float32."""
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        slopes = slopes.float()
        first.lerp_(slopes, 1 - beta1)
        second.mul_(beta2).addcmul_(slopes, slopes, value=1 - beta2)
        below = second.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
        moved = flat.float()  # the weight itself where it is float32
        moved.mul_(1 - lr * group["weight_decay"]).addcdiv_(first, below, value=-lr / (1 - beta1**step))
        if moved is not flat:
            flat.copy_(moved)

    def _read(self, group: dict[str, Any], parameter: Tensor, name: str) -> Tensor:
        """The moment in float32; zeros before the first step."""
        state, part = self.state[parameter], local_part(parameter)
        if name not in state:
            return torch.zeros_like(part, dtype=torch.float32)
        found: Tensor = state[name]
        if found.dtype != torch.uint8:
            return found
        codes = Codes(found.view(-1), state[f"{name}_absmax"])
        return decode(codes, tuple(part.shape), signed=MOMENTS[name], block=group["block"])

    def _write(self, group: dict[str, Any], parameter: Tensor, name: str, moment: Tensor) -> None:
        state = self.state[parameter]
        if parameter.numel() < group["min_size"]:
            state[name] = moment
            return
        codes = encode(moment, signed=MOMENTS[name], block=group["block"], floor=group["floor"])
        state[name], state[f"{name}_absmax"] = codes.codes, codes.absmax

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A state of this class, or of `torch.optim.AdamW`, whose moments are then encoded.

        Raises:
            ValueError: a setting of torch's that this class does not follow; nothing is loaded then.
        """
        for group in state_dict["param_groups"]:
            for name in ("amsgrad", "maximize"):
                if group.get(name):
                    raise ValueError(f"the saved optimizer has {name}={group[name]!r}, which AdamW8bit does not know")
        super().load_state_dict(state_dict)
        for group in self.param_groups:  # torch's groups have no settings of ours
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        owners = [(group, owner) for group in self.param_groups for owner in group["params"]]
        for place, saved in state_dict["state"].items():
            group, owner = owners[place]
            state, device = self.state[owner], local_part(owner).device
            state["step"] = int(saved["step"])
            for name in MOMENTS:
                kept = local_part(saved[name]).to(device)
                if kept.dtype == torch.uint8:  # torch's own loading made floats of the codes
                    state[name], state[f"{name}_absmax"] = kept.clone(), saved[f"{name}_absmax"].to(device).clone()
                else:
                    self._write(group, owner, name, kept.float().clone())

    @torch.no_grad()
    def to_float(self) -> dict[str, Any]:
        """A state for `torch.optim.AdamW.load_state_dict`, with float32 moments."""
        found = self.state_dict()
        owners = [(group, owner) for group in self.param_groups for owner in group["params"]]
        for place in found["state"]:
            group, owner = owners[place]
            moments = {name: self._read(group, owner, name).clone() for name in MOMENTS}
            found["state"][place] = {"step": torch.tensor(float(self.state[owner]["step"])), **moments}
        for group in found["param_groups"]:
            for name in ("block", "min_size", "floor"):
                group.pop(name)
            torch_only = {
                "amsgrad": False,
                "maximize": False,
                "foreach": None,
                "capturable": False,
                "differentiable": False,
            }
            group.update(torch_only, fused=None, decoupled_weight_decay=True)
        return found

    def state_bytes(self) -> tuple[int, int]:
        """Bytes of the moments on this rank, and of the same in float32."""
        own = [v for state in self.state.values() for v in state.values() if isinstance(v, Tensor)]
        return (
            sum(v.numel() * v.element_size() for v in own),
            sum(8 * local_part(owner).numel() for owner in self.state),
        )


def _betas(betas: Any) -> tuple[float, float]:
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
    return float(betas[0]), float(betas[1])


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that are known here, found to be right."""
    checks: dict[str, Callable[[Any], Any]] = {
        "lr": partial(non_negative, "lr"), "betas": _betas, "eps": partial(positive, "eps"),
        "weight_decay": partial(non_negative, "weight_decay"), "block": check_block,
        "min_size": lambda value: whole("min_size", value, 1), "floor": partial(flag, "floor"),
    }  # fmt: skip
    return {name: check(settings[name]) for name, check in checks.items() if name in settings}
