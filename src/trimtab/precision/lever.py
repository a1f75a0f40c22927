"""LowPrecision: training as if gradients, weights, momentum, activations or the operands of products were kept in few bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trimtab.checks import whole
from trimtab.collectives import is_distributed, local_part
from trimtab.levers import gradients_stand
from trimtab.parameters import Entry, Judged, Rule, rule_or
from trimtab.precision.activations import ActivationHooks
from trimtab.precision.communication import QuantisedReduction, quantised_reduction
from trimtab.precision.format import Format
from trimtab.precision.master_weights import MasterWeights
from trimtab.precision.meter import ShrinkageMeter
from trimtab.precision.momentum import FIRST_MOMENTS, momentum_buffers
from trimtab.precision.named_recipes import recipe_named
from trimtab.precision.operands import OperandRounding
from trimtab.precision.product_layers import ProductLayers
from trimtab.precision.quantize import OverflowPolicy
from trimtab.precision.recipes import Recipe
from trimtab.precision.rounding import Rounding
from trimtab.precision.scaling import Scaling
from trimtab.precision.shrinkage import Measured, shrinkage
from trimtab.precision.tensor_rounding import TensorRounding, dense_gradients

FormatOrName = str | Format


class LowPrecision:
    """A lever that rounds gradients, weights, momentum, activations and operands of products, each where it is asked to.

    In one step, with Q the rounding of `quantize`:

        forward, backward at Q(w), layer outputs y -> Q(y), their gradients likewise
        g <- Q(g)                  at the lever's place in the chain, after unscaling, accumulation and all-reduce
        w <- w - step(g)           on the float32 master w (master=True), or on Q(w) itself (master=False)
        momentum <- Q(momentum)    after the step
        model's weights <- Q(w)    after the step

    Between steps the model holds the rounded weights: evaluation and checkpoints see what the hardware would hold. The masters
    come back with `Handle.remove()`, and for a while with `with lever.full_precision():`. What other hands change in the
    weights between steps, outside that block, is lost when master=True. Levers before this one in the chain see Q(w), those
    after it w. An optimizer that calls its closure once per step sees Q(w) there.

    Args:
        gradients: format or name of the gradients, None leaves them.
        weights: of the weights.
        momentum: of the optimizer's buffers named in `momentum_keys`.
        activations: of the outputs of Linear and convolution layers (transformers' Conv1D too) whose weight the rule picks, by
            straight-through rounding; a pair (forward, backward) also rounds the gradients that come back there. Needs
            `attach(..., model=model)`. Products elsewhere (`nn.MultiheadAttention`, recurrent layers, fused experts, modules of
            your own) are not seen; a warning names them once.
        matmul: a `Recipe` or its name ("nvfp4", "mxfp4", "mxfp8", "fp8-deepseek", "fp8-tensor"; `recipe_named`): how the layers
            compute. Hardware rounds the operands of the products `Y = X W'`, `dX = dY W` and `dW = dY' X`, each along the
            dimension it sums over, and so do Linear, convolutions (as products with patches), transformers' Conv1D and stacked
            experts whose weight the rule picks; layers that the recipe keeps stand in `left_out`. Needs `attach(...,
            model=model)`. Sums are taken in float32; under autocast operands and results have its dtype first. A contraction
            that blocks do not divide is padded with zeros, exactly. Compiled graphs break at each layer.
        total_steps: steps of the training; needed by a recipe that ends before (`until`).
        oscillation: with a meter, share of the weight operand's entries that go back and forth within so many steps; 13 bytes
            for each. Default 0: not watched.
        rounding, overflow, scaling: as for `quantize`, of all but `matmul`, which says its own.
        master: whether the optimizer steps weights kept in full; one more copy of them.
        before_reduce: round each rank's gradient before the all-reduce, as quantised communication does, with noise of
            each rank's own; needs `attach(..., model=model)` with the DistributedDataParallel model. Under GradScaler the
            scaled gradient is what is sent and rounded. In one process without that wrapper the same as after.
        momentum_keys: names in the optimizer's state. Default "momentum_buffer", "exp_avg" [ours]: first moments; second
            moments ("exp_avg_sq") span twice the exponents and are rounded only when asked for.
        seed: of stochastic rounding. Numbers are a function of seed, step, tensor and (before the reduction, and for shards,
            activations and operands) rank: a resumed run draws the same, and evaluating in between changes nothing. Operands
            that a recipe rounds stochastically in the forward pass take one number each from torch's global generator.
        rule: which tensors count. Default `Rule(role="any")`: trainable, at least two dimensions [ours], so biases and the
            scales of normalisation layers stay as they are; `Rule(min_ndim=0)` rounds everything.
        meter: measures what rounding did to gradients, weights, momentum and operands.

    Attributes:
        left_out: the tensors left as they are, each with the reason: the rule's, or no known channels for `PerChannel`.

    Raises:
        TypeError, ValueError: nothing to round; settings that `quantize` refuses; when attached: the rule picks nothing, a
            format does not fit a tensor's dtype, scaling of a sharded tensor, no model where one is needed, LBFGS with
            weights; at a step: an optimizer without such buffers, sparse gradients, what overflow="raise" refuses.

    Source: arXiv 2508.07142 (gradients); master weights: Micikevicius et al., arXiv 1710.03740; recipes say their own.

    Example:
        >>> import torch, trimtab
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> handle = trimtab.attach(optimizer, LowPrecision("e2m1"))
        >>> net(torch.tensor([[0.3, 2.4]])).sum().backward()
        >>> optimizer.step()
        >>> net.weight.grad
        tensor([[0.5000, 2.0000]])
    """

    one_optimizer = "it counts steps and keeps the momentum of one; make one for each optimizer"

    def __init__(
        self,
        gradients: FormatOrName | None = None,
        weights: FormatOrName | None = None,
        momentum: FormatOrName | None = None,
        activations: FormatOrName | tuple[FormatOrName | None, FormatOrName | None] | None = None,
        *,
        matmul: str | Recipe | None = None,
        total_steps: int | None = None,
        oscillation: int = 0,
        rounding: Rounding = "nearest",
        overflow: OverflowPolicy = "saturate",
        scaling: Scaling | None = None,
        master: bool = True,
        before_reduce: bool = False,
        momentum_keys: Sequence[str] = FIRST_MOMENTS,
        seed: int = 0,
        rule: Rule | None = None,
        meter: ShrinkageMeter | None = None,
    ) -> None:
        forward, backward = activations if isinstance(activations, tuple) else (activations, None)
        formats = {"gradients": gradients, "weights": weights, "momentum": momentum}
        formats |= {"forward": forward, "backward": backward}
        recipe = None if matmul is None else recipe_named(matmul)
        if recipe is None and not any(each is not None for each in formats.values()):
            raise ValueError(
                "LowPrecision rounds nothing; give gradients, weights, momentum or activations a format, or matmul a recipe"
            )
        if recipe is not None and recipe.until < 1 and total_steps is None:
            raise ValueError(f"recipe {recipe.name!r} ends after {recipe.until:g} of the training; give total_steps")
        if before_reduce and gradients is None:
            raise ValueError("before_reduce=True rounds gradients, and gradients is None; give it a format")
        if isinstance(momentum_keys, str) or not momentum_keys:
            raise TypeError(f"momentum_keys must be a tuple of names, got {momentum_keys!r}")
        self.rounding = TensorRounding(formats, rounding, overflow, scaling, seed, meter)
        self.formats = self.rounding.formats
        self.matmul, self.total_steps = recipe, None if total_steps is None else whole("total_steps", total_steps, 1)
        self.operands = (
            None if recipe is None else OperandRounding(recipe, self.rounding, oscillation, self._gradients_stand)
        )
        if oscillation and (recipe is None or recipe["fprop"].second is None):
            raise ValueError(
                "oscillation watches the weights that matmul rounds in the forward pass; give it such a recipe"
            )
        self._products: ProductLayers | None = None
        self.master, self.before_reduce = master, before_reduce
        self.momentum_keys = tuple(momentum_keys)
        self.rule = rule_or(rule, Rule(role="any"))
        self.meter = meter
        self._optimizer: torch.optim.Optimizer | None = None
        self._judged: Judged[list[Entry]] = Judged()
        self._chosen: list[Entry] = []
        self._by_id: dict[int, Entry] = {}
        self.left_out: list[tuple[Entry, str]] = []
        self._masters = MasterWeights()
        self._hooks: ActivationHooks | None = None
        self._reduction: QuantisedReduction | None = None

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return self.rounding.step

    @property
    def measured(self) -> Measured | None:
        """Sums over the gradients of the step measured last, None before."""
        return self.rounding.found.get("gradients")

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Round the weights, hook activations and communication; called by `trimtab.attach`."""
        if self._optimizer is not None:
            raise ValueError(f"{self!r} is attached already; remove it there or make another")
        if "weights" in self.formats and isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError("LBFGS evaluates its closure at several points of a step; weights cannot be rounded there")
        chosen = self._pick(parameters)
        try:
            if self.operands is not None:
                if model is None:
                    raise ValueError("products are computed in the model's layers; give attach(..., model=model)")
                self._products = ProductLayers(model, chosen, self.operands, self._in_few_bits)
                self.left_out += self._products.left_out
            if {"forward", "backward"} & self.formats.keys():
                if model is None:
                    raise ValueError("activations are rounded in the model; give attach(..., model=model)")
                self._hooks = ActivationHooks(
                    model,
                    chosen,
                    self._round_activation,
                    lambda: not self._masters.out,
                    backward="backward" in self.formats,
                )
            if self.before_reduce:
                self._reduction = quantised_reduction(model, self._round_before_reduction)
            self._optimizer = optimizer
            self._round_weights(chosen)
        except BaseException:
            self.unbind()
            raise

    def unbind(self) -> None:
        """Put the masters back and take the hooks off; called by `Handle.remove`."""
        self._masters.restore(self._chosen)
        self._masters = MasterWeights()
        if self._hooks is not None:
            self._hooks.remove()
        if self._products is not None:
            self._products.remove()
        if self._reduction is not None:
            self._reduction.round = None
        if self.meter is not None:
            self.meter.flush()
        self._optimizer = self._hooks = self._reduction = self._products = None
        self._judged = Judged()

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Put the masters back, round the gradients; called by `trimtab.attach`."""
        self._masters.restore(self._pick(parameters))
        if "gradients" not in self.formats:
            return
        gradients = self.rounded_gradients(parameters)
        if self._reduction is None:
            self.rounding.round_("gradients", gradients)
        else:
            self.rounding.keep_own_sums([entry for entry, _ in gradients])

    def rounded_gradients(self, parameters: Sequence[Entry]) -> list[tuple[Entry, Tensor]]:
        """The entries whose gradients this lever rounds and that have one now, with it."""
        return dense_gradients(self._pick(parameters))

    @torch.no_grad()
    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Round momentum and weights; called by `trimtab.attach`."""
        chosen = self._pick(parameters)
        if "momentum" in self.formats:
            if self._optimizer is None:
                raise RuntimeError("momentum lies in the optimizer; use trimtab.attach(optimizer, lever)")
            for key, buffers in momentum_buffers(self._optimizer, chosen, self.momentum_keys).items():
                self.rounding.round_("momentum", buffers, key)
        if self.operands is not None and self._in_few_bits():
            self.rounding.keep(self.operands.measured())
        self.rounding.end_step()
        self._round_weights(chosen)

    def _in_few_bits(self) -> bool:
        """Whether products that begin now are of rounded operands."""
        assert self.matmul is not None
        over = self.total_steps is not None and self.step >= self.matmul.until * self.total_steps
        return not self._masters.out and not (over and self.matmul.until < 1)

    def _pick(self, parameters: Sequence[Entry]) -> list[Entry]:
        """The entries that the rule picks, judged once; ValueError when there is none, or one that cannot be rounded."""
        return self._judged(parameters, self._judge)

    def _judge(self, parameters: Sequence[Entry]) -> list[Entry]:
        reasons = [
            (entry, self.rule.reason_against(entry) or self.rounding.reason_against(entry)) for entry in parameters
        ]
        chosen = [entry for entry, reason in reasons if reason is None]
        self.left_out = [(entry, reason) for entry, reason in reasons if reason is not None]
        self.left_out += [] if self._products is None else self._products.left_out
        if not chosen:
            examples = "; ".join(f"{entry.name}: {reason}" for entry, reason in reasons[:3])
            raise ValueError(
                f"{self!r} finds nothing to round among {len(reasons)} parameter(s) ({examples}); see its rule"
            )
        for entry in chosen:
            self.rounding.check(entry)
        self._chosen = chosen
        self._by_id = {id(entry.parameter): entry for entry in chosen}
        return chosen

    def _gradients_stand(self) -> bool:
        return gradients_stand(entry.parameter for entry in self._chosen)

    def _round_before_reduction(self, parameter: Tensor, gradient: Tensor) -> None:
        if entry := self._by_id.get(id(parameter)):
            self.rounding.round_own_gradient_(entry, gradient, dist.get_rank())

    def _round_activation(self, tensor: Tensor, direction: str, layer: str, mode: str) -> Tensor:
        if direction not in self.formats:
            return tensor.view_as(tensor)
        return self.rounding.quantize_anew(tensor, direction, layer, mode, dist.get_rank() if is_distributed() else 0)

    def _round_weights(self, chosen: Sequence[Entry]) -> None:
        if "weights" in self.formats and self._optimizer is not None:
            if self.master:
                self._masters.keep(chosen)
            weights = [(entry, entry.parameter.detach()) for entry in chosen]
            self.rounding.round_("weights", weights)

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Within the block the model holds the masters and rounds no activation or operand; changes of the weights are kept.

        With master=False there is nothing more exact than the rounded weights, and they stay.

        Example:
            >>> import torch, trimtab
            >>> net = torch.nn.Linear(1, 1)
            >>> _ = torch.nn.init.constant_(net.weight, 0.3)
            >>> lever = LowPrecision(weights="e2m1")
            >>> handle = trimtab.attach(torch.optim.SGD(net.parameters()), lever)
            >>> with lever.full_precision():
            ...     inside = net.weight.item()
            >>> round(inside, 6), net.weight.item()
            (0.3, 0.5)
        """
        with self._masters.in_model(self._chosen, lambda: self._round_weights(self._chosen) if self.master else None):
            yield

    def signals(self) -> dict[str, Tensor]:
        """Projection q of all gradients together on the step measured last, on the device; empty before."""
        if self.measured is None:
            return {}
        return {"q": shrinkage(self.measured.together).projection}

    def settings(self) -> dict[str, Any]:
        """What changes the result; a saved state fits only where these agree."""
        return {
            **self.rounding.settings(),
            "master": self.master,
            "before_reduce": self.before_reduce,
            "momentum_keys": list(self.momentum_keys),
            **({} if self.matmul is None else {"matmul": repr(self.matmul), "total_steps": self.total_steps}),
        }

    def state_dict(self) -> dict[str, Any]:
        """Settings, number of the step, weights (the masters; of sharded ones this rank's part), and what the meter holds."""
        weights = self._masters.state_dict()
        if "weights" in self.formats and not self.master:
            weights = {entry.name: local_part(entry.parameter.detach()).clone() for entry in self._chosen}
        meter = None if self.meter is None else self.meter.state_dict()
        kept = {"weights": weights, "meter": meter}
        if self.operands is not None:
            kept["operands"] = self.operands.state_dict()
        return {"settings": self.settings(), **self.rounding.state_dict(), **kept}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the saved lever stood, with its weights rounded to the same numbers; ValueError where they do not fit."""
        if state.get("settings") != self.settings():
            raise ValueError(f"the saved settings {state.get('settings')} are not those of {self!r}, {self.settings()}")
        if self._optimizer is not None and "weights" in self.formats:
            masters = self._masters
            if not self.master:
                masters = MasterWeights()
                masters.keep(self._chosen)
            masters.load_state_dict(state["weights"])
            masters.restore(self._chosen)
        self.rounding.load_state_dict(state)
        if self.master:
            self._round_weights(self._chosen)
        self.rounding.load_state_dict(state)  # what the rounding just measured was measured before
        if self.operands is not None:
            self.operands.load_state_dict(state.get("operands", {}))
        if self.meter is not None and state["meter"] is not None:
            self.meter.load_state_dict(state["meter"])

    def __repr__(self) -> str:
        parts = self.rounding.in_words()
        if self.matmul is not None:
            parts = [*([] if not self.formats else parts), f"matmul={self.matmul.name}"]
        parts += ["master=False"] if "weights" in self.formats and not self.master else []
        parts += ["before_reduce=True"] if self.before_reduce else []
        parts.append(f"min_ndim={self.rule.min_ndim}")
        parts += [f"{name}={value!r}" for name in ("include", "exclude") if (value := getattr(self.rule, name))]
        return f"LowPrecision({', '.join(parts)})"
