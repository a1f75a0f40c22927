"""Gradients, weights and updates of a training run, layer by layer and together, watched for almost nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.checks import some_of
from trimtab.collectives import local_part
from trimtab.levers import Lever
from trimtab.observe.gradient_rows import GradientRows
from trimtab.observe.quantities import OF_WEIGHTS, RAW, STATISTICS, Quantities
from trimtab.observe.tables import KINDS
from trimtab.parameters import Entry, Judged, Rule, rule_or
from trimtab.sparse import refuse_sparse
from trimtab.tables.logged import Logged
from trimtab.tables.rows import SECONDS
from trimtab.tensors.passes import working_dtype

if TYPE_CHECKING:
    import pyarrow as pa

Listener = Callable[["pa.Table", "pa.Table"], object]


class GradientTracker(Logged[GradientRows]):
    """Records statistics of gradients, weights and weight changes per layer and of all layers together; changes nothing.

    Of each tensor x with n entries, once per optimizer step that is logged:

        mean = S / n,  variance = M2 / n (biased),  std = sqrt(variance),  norm = sqrt(sum x^2),  max_abs = max |x|,
        with S = sum x and M2 = sum (x - mean)^2;

    and counts of entries: zeros, nan, inf, subnormal (0 < |x| < smallest normal number of `small_format`). Of weights also
    magnitude_variance (of |w|, biased) and near_zero (|w| < 0.1 root mean square of the tensor). The row of layer "(global)"
    is of all tracked tensors together, exactly, from their sums. A tensor that holds NaN or infinity has mean, variance, std
    and norm NaN, and so has the global row; other layers are not touched by it.

    A lever for `trimtab.attach`. Attached first it sees the gradients as they come (unscaled, accumulated, reduced), later in
    the order those that the levers before it leave. "weights" are those the gradient was taken at, "updates" what the step
    added to them; a step that GradScaler skips is neither logged nor counted. Sums go to a buffer on the device and are
    fetched together: between flushes nothing waits for the device. Sharded tensors (FSDP2) are summed over the ranks by at most
    four collectives of a few numbers per layer. With a folder only rank 0 writes. Where the optimizer calls its closure
    several times (LBFGS), gradients and weights are those of the first call.

    Args:
        track: some of "gradients", "weights", "updates". Updates keep a copy of the tracked weights.
        every: log each k-th step, from step 0 on, or those for which a function of the step is true. Default 1.
        statistics: some of `STATISTICS`; columns of others are null. Default all.
        folder: run folder for `gradients.parquet/` and `signals.parquet/`, of this tracker alone. A loaded state goes on with
            the rows before its step. None keeps the rows in memory.
        capacity: logged steps per flush. Default 128 [ours]: 11 KiB of device memory per layer and kind.
        rule: which parameters count. Default `Rule(role="any")`: trainable, at least two dimensions [ours].
        small_format: "float16" (default), "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2", ...
        seconds: rows for a folder or a listener wait no longer than this for the next step to write them, and no longer than
            the script, be it ended by an exception: a kill loses what was logged in `seconds`. Default 60 [ours].
        overwrite: replace the rows that an earlier run left in the folder. Default False: a run from step 0 on refuses them.

    Raises:
        ValueError: an unknown name, `every` or `capacity` below 1, `seconds` not above 0; (at a step) the rule fits no
            parameter, the folder holds rows of an earlier run, or another tracker writes there.
        TypeError: `rule` is no Rule; (at a step) a gradient is neither dense nor sparse COO, the message names its parameter.

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> tracker = GradientTracker()
        >>> handle = trimtab.attach(optimizer, tracker, model=net)
        >>> net(torch.tensor([[1.0, 3.0]])).sum().backward()
        >>> optimizer.step()
        >>> tracker.table().select(["step", "layer", "mean", "std"]).to_pylist()[0]
        {'step': 0, 'layer': 'weight', 'mean': 2.0, 'std': 1.0}
    """

    observes = True

    def __init__(
        self,
        track: Sequence[str] = ("gradients",),
        every: int | Callable[[int], bool] = 1,
        statistics: Sequence[str] = STATISTICS,
        folder: Path | str | None = None,
        capacity: int = 128,
        rule: Rule | None = None,
        small_format: str = "float16",
        seconds: float = SECONDS,
        *,
        overwrite: bool = False,
    ) -> None:
        self.track = some_of("track", track, KINDS)
        self.statistics = some_of("statistics", statistics, STATISTICS)
        self.small_format = small_format
        self.rule = rule_or(rule, Rule(role="any"))
        self.step = 0
        """Optimizer steps seen so far; the number of the next one."""
        plain = [name for name in self.statistics if name not in OF_WEIGHTS]
        self._quantities = {
            kind: Quantities(self.statistics if kind == "weights" else plain, small_format) for kind in self.track
        }
        rows = GradientRows(
            self.track, self.statistics, small_format, capacity, folder, seconds=seconds, overwrite=overwrite
        )
        super().__init__(every, rows)
        self._watched: list[Lever] = []
        self._judged: Judged[list[Entry]] = Judged()
        self._layers: list[Entry] = []
        self._before: list[Tensor] = []
        self._changing: list[int] = []
        self._slot: Tensor | None = None
        self._taken: set[int] = set()

    # What happens at a step

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Take the sums of gradients and weights; called by `trimtab.attach`, for each optimizer of a step."""
        self._rows.open(self.step)
        if not self.due(self.step):
            return
        self._judged(parameters, self._choose)
        here = [at for at, entry in enumerate(self._layers) if self.rule.frozen or entry.parameter.requires_grad]
        with_gradient = [at for at in here if self._layers[at].parameter.grad is not None]
        for at in with_gradient:
            gradient = self._layers[at].parameter.grad
            if gradient is not None and gradient.layout is not torch.sparse_coo:
                refuse_sparse(self, self._layers[at].name, gradient)
        device = self._layers[0].parameter.device
        shape = (len(self.track), len(self._layers), len(RAW))
        if fresh := self._slot is None or not self._taken.isdisjoint(with_gradient):  # the step before may have failed
            if not self._rows.sums.fits(shape, device):
                self.flush()
            self._slot, self._taken = self._rows.sums.slot(shape, device), set()
        self._taken.update(with_gradient)
        if "gradients" in self.track:
            gradients = [self._layers[at].parameter.grad for at in with_gradient]
            self._take("gradients", with_gradient, [gradient for gradient in gradients if gradient is not None])
        if "weights" in self.track:
            weights_at = here if fresh else with_gradient  # those of later optimizers as they are before their own step
            self._take("weights", weights_at, [self._layers[at].parameter for at in weights_at])
        if "updates" in self.track:
            self._remember(with_gradient)

    @torch.no_grad()
    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Take the sums of the updates; called by `trimtab.attach`, for each optimizer of a step."""
        if self._slot is not None and "updates" in self.track:
            updates = [self._before[at] for at in self._changing]
            if updates:
                torch._foreach_neg_(updates)
                torch._foreach_add_(updates, [local_part(self._layers[at].parameter) for at in self._changing])
            self._take("updates", self._changing, updates)

    @torch.no_grad()
    def end_step(self) -> None:
        """Take the watched signals and count the step; called by `trimtab.attach` when all its optimizers have stepped."""
        if self._slot is not None:
            device, self._slot = self._slot.device, None
            self._rows.sums.commit(self.step)
            self._take_signals(device)
            self.step += 1
            self._rows.committed()
        else:
            self.step += 1

    def _choose(self, parameters: Sequence[Entry]) -> list[Entry]:
        """Find the layers when the parameters are new; a frozen one may thaw later, so that is asked at each step."""
        rule = replace(self.rule, frozen=True)
        layers = [entry for entry in parameters if rule.reason_against(entry) is None and entry.parameter.numel()]
        if not layers:
            raise ValueError(f"{self!r} fits none of the optimizer's {len(parameters)} parameters")
        self.flush()
        self._rows.layers = [entry.name for entry in layers]
        self._layers, self._before, self._slot = layers, [], None
        return layers

    def _take(self, kind: str, positions: list[int], tensors: list[Tensor]) -> None:
        if self._slot is None or not positions:
            return
        rows = self._slot[self.track.index(kind)]
        parameters = [self._layers[at].parameter for at in positions]
        found = self._quantities[kind](tensors, parameters, rows.device)
        if len(positions) == len(rows):
            rows.copy_(found)
        else:
            for at, row in zip(positions, found.unbind(), strict=True):
                rows[at].copy_(row)

    def _remember(self, positions: list[int]) -> None:
        """Copy the weights that the step will change."""
        if not self._before:
            weights = [local_part(entry.parameter) for entry in self._layers]
            self._before = [torch.empty_like(weight, dtype=working_dtype(weight)) for weight in weights]
        self._changing = positions
        if positions:
            weights = [local_part(self._layers[at].parameter) for at in positions]
            torch._foreach_copy_([self._before[at] for at in positions], weights)

    def _take_signals(self, device: torch.device) -> None:
        signals: dict[str, Tensor] = {}
        for position, lever in enumerate(self._watched):
            found: Mapping[str, Any] = getattr(lever, "signals", dict)()
            for name, value in found.items():
                key = f"{type(lever).__name__}{position}.{name}" if name in signals else name
                signals[key] = torch.as_tensor(value, dtype=torch.float64, device=device)
        if not signals:
            return
        names, rows = list(signals), self._rows
        if names != rows.signal_names or not rows.signals.fits((len(names),), device):
            self.flush()
            rows.signal_names = names
        torch.stack(list(signals.values()), out=rows.signals.slot((len(names),), device))
        rows.signals.commit(self.step)

    # What was found

    def watch(self, levers: Lever | Sequence[Lever]) -> GradientTracker:
        """Also record `signals()` of these levers at each logged step, after it; returns the tracker.

        Two signals of one name: the second is called by its lever's type and place, `Autoscale1.alpha`. Levers without
        signals are passed over.
        """
        given = [levers] if isinstance(levers, Lever) else list(levers)
        self._watched += [lever for lever in given if all(lever is not known for known in self._watched)]
        return self

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(rows, signals)` at every flush with the new rows of both tables; returns a function that ends it."""
        listeners = self._rows.listeners
        listeners.append(listener)

        def leave() -> None:
            if listener in listeners:
                listeners.remove(listener)

        return leave

    def unbind(self) -> None:
        """Flush; called when the handle is removed."""
        self.flush()

    def table(self) -> pa.Table:
        """All rows so far, flushed: step, layer, kind, n and each of `STATISTICS`; one row per step, kind and layer.

        A layer without a gradient at a step has no row. Steps, n and counts are integers, everything else float64.
        """
        self.flush()
        return self._rows.parts[0].table(before=self.step)

    def signals_table(self) -> pa.Table:
        """All signals so far, flushed: step, name, value."""
        self.flush()
        return self._rows.parts[1].table(before=self.step)

    # What a resumed run needs

    def state_dict(self) -> dict[str, Any]:
        """Flushes; the number of steps seen and, without a folder, the rows as bytes (uint8 tensors)."""
        rows, signals = self._rows.state()
        return {"step": self.step, "small_format": self.small_format, "rows": rows, "signals": signals}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state: rows of its step and later are removed, since they will be written again.

        Raises:
            ValueError: the state is not a tracker's, counts subnormal numbers of another format, or kept its rows elsewhere.
        """
        self._checked_state(state, "step", "small_format", "rows", "signals")
        if state["small_format"] != self.small_format:
            raise ValueError(
                f"the saved tracker counts what is subnormal in {state['small_format']!r}, this one in {self.small_format!r}"
            )
        self._rows.restore((state["rows"], state["signals"]), int(state["step"]))
        self.step, self._slot = int(state["step"]), None

    def __repr__(self) -> str:
        parts = [f"track={self.track}", f"every={self._every_in_words()}", f"min_ndim={self.rule.min_ndim}"]
        parts += [f"{name}={value!r}" for name in ("include", "exclude") if (value := getattr(self.rule, name))]
        return f"GradientTracker({', '.join(parts)})"
