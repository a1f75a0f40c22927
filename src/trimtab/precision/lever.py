"""LowPrecision: training as if gradients, weights, momentum, activations or the operands of products were kept in few bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trimtab.checks import whole
from trimtab.levers import gradients_stand, refuse_state_elsewhere
from trimtab.parameters import Entry, Judged, Rule, rule_or
from trimtab.precision.arguments import FormatOrName, ForwardAndBackward, check, formats_by_kind
from trimtab.precision.in_model import InModel
from trimtab.precision.master_weights import MasterWeights
from trimtab.precision.meter import ShrinkageMeter
from trimtab.precision.momentum import FIRST_MOMENTS, momentum_buffers
from trimtab.precision.named_recipes import recipe_named
from trimtab.precision.operands import OperandRounding
from trimtab.precision.quantize import OverflowPolicy
from trimtab.precision.recipes import Recipe
from trimtab.precision.rounding import Rounding
from trimtab.precision.saved_rounding import SavedRounding
from trimtab.precision.scaling import Scaling
from trimtab.precision.shrinkage import Measured, shrinkage
from trimtab.precision.tensor_rounding import TensorRounding, dense_gradients


class LowPrecision(SavedRounding):
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
        matmul: a `Recipe` or its name ("nvfp4", "mxfp4", "mxfp8", "fp8-deepseek", "fp8-tensor", "fp8-delayed", more in
            `RECIPES`): how the layers compute. Hardware rounds the operands of the products `Y = X W'`, `dX = dY W` and
            `dW = dY' X`, each along the dimension it sums over, and so do Linear, convolutions (as products with patches),
            transformers' Conv1D and stacked experts whose weight the rule picks; layers that the recipe keeps stand in
            `left_out`. Needs `attach(..., model=model)`. Sums are taken in float32; under autocast operands and results have
            its dtype first. A contraction that blocks do not divide is padded with zeros, exactly. Compiled graphs break at
            each layer. Under delayed scaling a factor's scale is from the steps before, with one entry a step: the largest
            over all passes whose gradients the step took, and over all ranks. The first step has its own. The history is in
            the state.
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
        activations: FormatOrName | ForwardAndBackward | None = None,
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
        formats = formats_by_kind(gradients, weights, momentum, activations)
        recipe = None if matmul is None else recipe_named(matmul)
        check(formats, recipe, total_steps, oscillation, momentum_keys, before_reduce=before_reduce)
        self.rounding = TensorRounding(formats, rounding, overflow, scaling, seed, meter)
        self.formats = self.rounding.formats
        self.matmul, self.total_steps = recipe, None if total_steps is None else whole("total_steps", total_steps, 1)
        self.operands = (
            None if recipe is None else OperandRounding(recipe, self.rounding, oscillation, self._gradients_stand)
        )
        self._in_model = InModel(self.rounding, self.operands)
        self.master, self.before_reduce = master, before_reduce
        self.momentum_keys = tuple(momentum_keys)
        self.rule = rule_or(rule, Rule(role="any"))
        self.meter = meter
        self._optimizer: torch.optim.Optimizer | None = None
        self._judged: Judged[list[Entry]] = Judged()
        self._chosen: list[Entry] = []
        self.left_out: list[tuple[Entry, str]] = []
        self._masters = MasterWeights()

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
        if "momentum" in self.formats:
            refuse_state_elsewhere(f"{type(self).__name__} rounds the momentum in", optimizer)
        chosen = self._pick(parameters)
        try:
            self._in_model.bind(
                model, chosen, self._in_few_bits, lambda: not self._masters.out, before_reduce=self.before_reduce
            )
            self.left_out += self._in_model.left_out
            self._optimizer = optimizer
            self._round_weights(chosen)
        except BaseException:
            self.unbind()
            raise

    def unbind(self) -> None:
        """Put the masters back and take the hooks off; called by `Handle.remove`."""
        self._masters.restore(self._chosen)
        self._masters = MasterWeights()
        self._in_model.unbind()
        if self.meter is not None:
            self.meter.flush()
        self._optimizer = None
        self._judged = Judged()

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Put the masters back, round the gradients; called by `trimtab.attach`."""
        self._masters.restore(self._pick(parameters))
        if "gradients" not in self.formats:
            return
        gradients = self.rounded_gradients(parameters)
        if not self._in_model.reduces:
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
            self.operands.delayed.end_step()
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
        self.left_out += self._in_model.left_out
        if not chosen:
            examples = "; ".join(f"{entry.name}: {reason}" for entry, reason in reasons[:3])
            raise ValueError(
                f"{self!r} finds nothing to round among {len(reasons)} parameter(s) ({examples}); see its rule"
            )
        for entry in chosen:
            self.rounding.check(entry)
        self._chosen = chosen
        self._in_model.by_id = {id(entry.parameter): entry for entry in chosen}
        return chosen

    def _gradients_stand(self) -> bool:
        return gradients_stand(entry.parameter for entry in self._chosen)

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
