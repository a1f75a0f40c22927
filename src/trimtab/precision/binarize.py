"""Binarize: training as if weights, and on demand activations, had one bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.checks import flag, number, one_of, positive, whole
from trimtab.levers import takes_closure
from trimtab.parameters import Entry, Judged, Rule, no_axis, rule_or
from trimtab.parameters.arguments import Arguments, layer_input, with_input
from trimtab.precision.binary import BinarySign, estimated_slope, power_at, sign
from trimtab.precision.master_weights import MasterWeights
from trimtab.sparse import refuse_sparse
from trimtab.tensors.passes import refuse_sharded, working_dtype

Estimator = Literal["reste", "ste"]
Scale = Literal["tensor_mean", "channel_mean"]
NAME = "binary"
"""How recipes and reports call the format."""


class Binarize:
    """A lever that keeps weights at two values, `+a` and `-a`; the optimizer steps the full ones behind them.

    Formula: the network computes with `W_b = a sign(W)`, `a = mean |W|`. With G the gradient at W_b, W gets

        dW = a G slope(W) + (sum G sign(W) / n) sign(W)

    slope that of `sign(x) |x|^(1/o)` (`estimated_slope`): ever closer to sign as o grows, and ever less stable, so that o goes
    from 1 to `o_end` along the run, `o = 1 + (1 - cos(pi t / 2T)) (o_end - 1)`. The second term is the gradient through a,
    which the authors' code does not detach.

    Between steps the model holds W_b; the full weights come back with `Handle.remove()`, and for a while with
    `with lever.full_precision():`.

    Args:
        estimator: "reste" (default), or "ste": o stays 1, the clipped identity.
        o_end: o at the end, 1 or more. Default 3 (paper: where its two indicators balance).
        clip: beyond it a weight gets no gradient through the sign. Default 1.5 (authors).
        interval: up to it the slope is that of a secant. Default 0.1 (authors).
        scale: "tensor_mean" (default, authors' code): a of the whole tensor; "channel_mean": of each output channel (XNOR-Net);
            None: a = 1.
        activations: also take the signs of what comes into the layers of these weights, with the same slope and no scale. Needs
            `attach(..., model=model)`. Default False.
        ends: whether the first and the last layer take part. Default False, as is usual.
        total_steps: steps of the whole run, along which o grows. Default None: `set_progress` says where the run stands.
        rule: which weights. Default: weights of products and tables, trainable.

    Attributes:
        o: now.
        left_out: the parameters left as they are, each with the reason.

    Raises:
        ValueError: a number out of range, an unknown name; when attached: nothing to binarize, sharded weights, an optimizer
            that needs a closure (LBFGS), activations without a model; at a step: a NaN weight (named).
        TypeError: at a step: a sparse gradient.

    Source: arXiv 2308.06689; channel scales: XNOR-Net, 1603.05279.

    Example:
        >>> import trimtab
        >>> net = nn.Linear(2, 1, bias=False)
        >>> net.weight.data = torch.tensor([[0.3, -0.1]])
        >>> handle = trimtab.attach(torch.optim.SGD(net.parameters(), lr=0.1), Binarize(ends=True), model=net)
        >>> net.weight.data
        tensor([[ 0.2000, -0.2000]])
    """

    one_optimizer = "it keeps the full weights and counts the steps of one; make one for each optimizer"

    def __init__(
        self,
        estimator: Estimator = "reste",
        o_end: float = 3.0,
        clip: float = 1.5,
        interval: float = 0.1,
        scale: Scale | None = "tensor_mean",
        *,
        activations: bool = False,
        ends: bool = False,
        total_steps: int | None = None,
        rule: Rule | None = None,
    ) -> None:
        self.estimator = one_of("estimator", estimator, ("reste", "ste"))
        self.o_end = number("o_end", o_end, least=1)
        self.clip = positive("clip", clip)
        self.interval = number("interval", interval, above=0, most=self.clip)
        self.scale = scale if scale is None else one_of("scale", scale, ("tensor_mean", "channel_mean"))
        self.activations, self.ends = flag("activations", activations), flag("ends", ends)
        self.total_steps = None if total_steps is None else whole("total_steps", total_steps, 1)
        self.rule = rule_or(rule, Rule())
        self.progress, self.steps = 0.0, 0
        self.left_out: list[tuple[Entry, str]] = []
        self._judged: Judged[list[Entry]] = Judged()
        self._chosen: list[Entry] = []
        self._masters = MasterWeights()
        self._hooks: list[Any] = []
        self._bound = False
        self._found: dict[str, Tensor] = {}

    # the run's progress

    @property
    def o(self) -> float:
        """The power now."""
        return 1.0 if self.estimator == "ste" else power_at(self.progress, self.o_end)

    def set_progress(self, fraction: float) -> None:
        """Say how much of the run is done, in [0, 1], such as `epoch / epochs`; not where `total_steps` is given."""
        if self.total_steps is not None:
            raise ValueError("o follows total_steps; leave it out to say the progress yourself")
        self.progress = number("fraction", fraction, least=0, most=1)

    # which weights

    def _pick(self, parameters: Sequence[Entry]) -> list[Entry]:
        return self._judged(parameters, self._judge)

    def _judge(self, parameters: Sequence[Entry]) -> list[Entry]:
        refuse_sharded("Binarize averages over", parameters)
        reasons = [(entry, self.rule.reason_against(entry) or self._reason(entry)) for entry in parameters]
        chosen = [entry for entry, reason in reasons if reason is None]
        self.left_out = [(entry, reason) for entry, reason in reasons if reason is not None]
        if not self.ends and chosen:
            ends = (
                min(chosen, key=lambda entry: entry.places[0]),
                max(reversed(chosen), key=lambda entry: entry.places[1]),
            )
            self.left_out += [(entry, "first or last layer, left in full (ends)") for entry in dict.fromkeys(ends)]
            chosen = [entry for entry in chosen if entry not in ends]
        if not chosen:
            said = "; ".join(f"{entry.name}: {reason}" for entry, reason in self.left_out[:3])
            raise ValueError(f"{self!r} finds nothing to binarize among {len(reasons)} parameter(s) ({said})")
        self._chosen = chosen
        return chosen

    def _reason(self, entry: Entry) -> str | None:
        if entry.computed is not None:
            return "part of a weight that is computed from others"
        return no_axis(entry) if self.scale == "channel_mean" else None

    # what a handle calls

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Binarize the weights, hook activations; called by `trimtab.attach`."""
        if self._bound:
            raise ValueError(f"{self!r} is attached already; remove it there or make another")
        if takes_closure(optimizer):
            raise ValueError(
                f"{type(optimizer).__name__} moves weights inside its step, where binary ones cannot stand"
            )
        chosen = self._pick(parameters)
        if self.activations:
            if model is None:
                raise ValueError("activations are binarized in the model; give attach(..., model=model)")
            owners = {id(owner): owner for entry in chosen for owner in entry.owners}
            self._hooks = [
                owner.register_forward_pre_hook(self._binary_inputs(), with_kwargs=True) for owner in owners.values()
            ]
        self._bound = True
        self._binarize(chosen)

    def unbind(self) -> None:
        """Put the full weights back and take the hooks off; called by `Handle.remove`."""
        self._masters.restore(self._chosen)
        for hook in self._hooks:
            hook.remove()
        self._masters, self._hooks, self._bound, self._judged = MasterWeights(), [], False, Judged()

    def _binary_inputs(self) -> Callable[..., Arguments | None]:
        def binary(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Arguments | None:
            inputs = layer_input(args, given)
            if self._masters.out or not isinstance(inputs, Tensor) or not inputs.is_floating_point():
                return None
            signs = BinarySign.apply(inputs, self.o, self.clip, self.interval)  # type: ignore[no-untyped-call]
            return with_input(args, given, signs)

        return binary

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Put the full weights back, and turn the gradients at the binary ones into theirs; called by `attach`."""
        chosen = self._pick(parameters)
        for entry in chosen:
            if entry.parameter.grad is not None:
                refuse_sparse(self, entry.name, entry.parameter.grad)
        self._masters.restore(chosen)
        errors, variances = [], []
        for entry in chosen:
            weight = entry.parameter.detach()
            wide = weight.to(working_dtype(weight))
            errors.append((sign(wide) * wide.abs().pow(1 / self.o) - sign(wide)).norm())
            if entry.parameter.grad is None:
                continue
            gradient = self._gradient(entry, wide, entry.parameter.grad.to(wide.dtype))
            entry.parameter.grad.copy_(gradient)
            variances.append(gradient.abs().var() if gradient.numel() > 1 else gradient.new_zeros(()))
        zero = torch.zeros(())
        self._found = {
            "error": torch.stack([value.double().cpu() for value in errors]).sum(),
            "stability": torch.stack([value.double().cpu() for value in variances]).sum() if variances else zero,
        }

    def _gradient(self, entry: Entry, weight: Tensor, gradient: Tensor) -> Tensor:
        """dL/dW from dL/dW_b."""
        through = gradient * estimated_slope(weight, self.o, self.clip, self.interval)
        if self.scale is None:
            return through
        by_scale = self._mean(entry, gradient * sign(weight)) * weight.sign()
        return self._mean(entry, weight.abs()) * through + by_scale

    def _mean(self, entry: Entry, values: Tensor) -> Tensor:
        """Mean over what shares a scale, of a shape that broadcasts."""
        if self.scale == "tensor_mean" or values.ndim < 2:
            return values.mean()
        axis = entry.output_axis or 0
        return values.mean([dim for dim in range(values.ndim) if dim != axis], keepdim=True)

    @torch.no_grad()
    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Count the step and binarize the weights; called by `trimtab.attach`."""
        self.steps += 1
        if self.total_steps is not None:
            self.progress = min(self.steps / self.total_steps, 1.0)
        self._binarize(self._pick(parameters))

    @torch.no_grad()
    def _binarize(self, chosen: Sequence[Entry]) -> None:
        binary = []
        for entry in chosen:
            weight = entry.parameter.detach()
            if bool(weight.isnan().any()):
                raise ValueError(f"{entry.name} holds NaN after {self.steps} steps: {self!r} cannot tell its sign")
            wide = weight.to(working_dtype(weight))
            binary.append(sign(wide) if self.scale is None else sign(wide) * self._mean(entry, wide.abs()))
        self._masters.keep(chosen)
        for entry, value in zip(chosen, binary, strict=True):
            entry.parameter.copy_(value)

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Within the block the model holds the full weights and activations are not binarized; changes of them are kept."""
        if not self._bound:
            yield
            return
        with self._masters.in_model(self._chosen, lambda: self._binarize(self._chosen)):
            yield

    # what it tells

    def signals(self) -> dict[str, Tensor]:
        """The paper's two indicators at the last step, small is good.

        `error`: sum over weights of `|| sign(W) |W|^(1/o) - sign(W) ||_2`; `stability`: sum of the unbiased variances of the
        magnitudes of their gradients.
        """
        return dict(self._found)

    def describe(self) -> dict[str, float]:
        """For a run's record: o and the two indicators."""
        return {"o": self.o, **{name: float(value) for name, value in self._found.items()}}

    def settings(self) -> dict[str, Any]:
        """What changes the result; a saved state fits only where these agree."""
        names = ("estimator", "o_end", "clip", "interval", "scale", "activations", "ends", "total_steps")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Settings, steps, progress, and the full weights."""
        return {
            "settings": self.settings(),
            "steps": self.steps,
            "progress": self.progress,
            "weights": self._masters.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the saved lever stood; ValueError where its settings or weights do not fit."""
        if state.get("settings") != self.settings():
            raise ValueError(f"the saved settings {state.get('settings')} are not those of {self!r}")
        if self._bound:
            self._masters.load_state_dict(state["weights"])
            self._masters.restore(self._chosen)
        self.steps, self.progress = int(state["steps"]), float(state["progress"])
        if self._bound:
            self._binarize(self._chosen)

    def __repr__(self) -> str:
        return f"Binarize({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"
