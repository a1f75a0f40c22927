"""ExampleScores: every training example scored by its number, along the run or in a pass of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn

from trimtab.checks import some_of, whole
from trimtab.collectives import is_distributed
from trimtab.observe.examples.formulas import check_logits, el2n, gradient_variance, within_class
from trimtab.observe.examples.passes import CHUNK, State, example_gradients, input_gradients, whole_state
from trimtab.observe.untouched import untouched

LOOKED = ("el2n", "grand", "vog", "tracin")
ALONG = ("el2n", "forgetting")
Batch = tuple[Tensor, Tensor, Tensor]


class ExampleScores:
    """Difficulty of every training example.

    Along the run, from the outputs that training has anyway: `see(ids, outputs, targets)` after each forward pass and
    `end_epoch()` after each epoch give

    * `el2n`, mean of `||softmax(z) - onehot(y)||` over the visits,
    * `forgetting`, how often an example that was right at one visit was wrong at the next; infinite where it never was right.

    In a pass of its own over clean views, at checkpoints: `look(model, batches, ...)` gives `el2n`, `grand`, `vog` and `tracin`
    (self-influence, `sum_k rate_k ||g_k||^2`).

    Args:
        size: examples of the training set, whose ids are 0 to size - 1.

    Raises:
        TypeError: ids are no whole numbers.
        ValueError: (at a call) an id is out of range or twice in a batch, shapes do not fit, an unknown score.

    Changes nothing: no number leaves the device before `end_epoch`, where the visits of all ranks come together. What `see`
    gets is scored as it was augmented; rank by `look` where augmentation hides the example. The scores of an example that was
    never seen are NaN.

    References: EL2N and GraNd, arXiv 2107.07075; forgetting, Toneva et al., arXiv 1812.05159; VoG, arXiv 2008.11600; TracIn,
    arXiv 2002.08484; their use at scale, arXiv 2311.16298.

    Example:
        >>> scores = ExampleScores(3)
        >>> ids, targets = torch.tensor([0, 2]), torch.tensor([0, 1])
        >>> for outputs in (torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 1.0]])):
        ...     scores.see(ids, outputs, targets)
        ...     scores.end_epoch()
        >>> scores.values("forgetting")
        tensor([1., nan, 0.], dtype=torch.float64)
    """

    def __init__(self, size: int) -> None:
        self.size = whole("size", size, least=1)
        self._visits = torch.zeros(size, dtype=torch.int64)
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._targets = torch.full((size,), -1, dtype=torch.int64)
        self._right = torch.zeros(size, dtype=torch.bool)
        self._learnt = torch.zeros(size, dtype=torch.bool)
        self._forgotten = torch.zeros(size, dtype=torch.int64)
        self._looked: dict[str, Tensor] = {}
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def see(self, ids: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Score a batch by its logits (examples, classes); ids (examples,), checked at once where they lie on the CPU."""
        self._check_ids(ids, outputs)
        errors = el2n(outputs, targets)
        self._waiting.append((ids, targets, errors, outputs.argmax(1) == targets))

    def end_epoch(self) -> None:
        """Take in what was seen, of all ranks; every rank must call it."""
        mine = [tuple(part.cpu() for part in batch) for batch in self._waiting]
        every: list[Any] = [mine]
        if is_distributed():
            every = [None] * dist.get_world_size()
            dist.all_gather_object(every, mine)
        self._waiting = []
        for batch in (batch for rank in every for batch in rank):
            self._take(*batch)

    def _take(self, ids: Tensor, targets: Tensor, errors: Tensor, right: Tensor) -> None:
        _check_range(ids, self.size)
        self._targets[ids] = targets
        self._visits[ids] += 1
        self._sum[ids] += errors.double()
        self._forgotten[ids] += (self._right[ids] & ~right).long()
        self._right[ids] = right
        self._learnt[ids] |= right

    def look(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        scores: str | Sequence[str] = "el2n",
        checkpoints: Sequence[State] | None = None,
        rates: Sequence[float] | None = None,
        layer: nn.Linear | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Score clean views in evaluation mode; the model is bit-equal afterwards.

        A set may be looked at in parts, by several calls with other examples each. Nothing is taken in where a call fails.

        Args:
            model: makes logits (examples, classes).
            batches: ids, inputs and targets, without augmentation, each example once.
            scores: some of "el2n", "grand", "vog", "tracin"; means over the checkpoints, but for tracin, a sum. VoG is given in
                deviations within the class ("vog") and as it is ("vog_raw").
            checkpoints: states of the model; VoG needs two or more: the first three of a run for early, the last three for
                late scores (authors' code). Default: the model as it stands.
            rates: learning rate at each checkpoint, for tracin.
            layer: the last layer, of which alone grand and tracin are then.
            again: put these scores in the place of earlier ones, as where a later checkpoint is looked at.

        Raises:
            ValueError: an example comes twice, or has one of these scores already and `again` is not set; checkpoints or rates
                are missing; a checkpoint is of another model.
        """
        wanted = some_of("scores", scores, LOOKED)
        states: Sequence[State | None] = [None] if checkpoints is None else checkpoints
        if "vog" in wanted and len(states) < 2:
            raise ValueError(f"vog is a variance over checkpoints, two or more, got {len(checkpoints or ())}")
        if "tracin" in wanted and (rates is None or len(rates) != len(states)):
            raise ValueError(f"tracin needs the learning rate at each of {len(states)} checkpoints, got {rates}")
        found = {name: torch.full((self.size,), math.nan, dtype=torch.float64) for name in wanted}
        seen = torch.zeros(self.size, dtype=torch.bool)
        kinds = self._targets.clone()
        for ids, inputs, targets in batches:
            self._check_ids(ids, inputs)
            ids = ids.cpu()
            _check_range(ids, self.size)
            for name in () if again else wanted:
                if name in self._looked and bool((before := self._looked[name][ids].isfinite()).any()):
                    raise ValueError(
                        f"example {int(ids[before][0])} has its {name} of an earlier look; again=True takes the new one"
                    )
            if bool(seen[ids].any()):
                raise ValueError(f"example {int(ids[seen[ids]][0])} comes twice; each is looked at once")
            seen[ids] = True
            kinds[ids] = targets.cpu()
            for name, values in _of_batch(model, inputs, targets, wanted, states, rates, layer).items():
                found[name][ids] = values.double().cpu()
        if "vog" in wanted:
            found["vog_raw"] = found["vog"]
        for name, values in found.items():
            if name in self._looked:
                found[name] = torch.where(seen, values, self._looked[name])
        if "vog" in wanted:
            found["vog"] = within_class(found["vog_raw"], kinds)
        self._targets = kinds
        self._looked.update(found)

    def values(self, name: str) -> Tensor:
        """A score of every example, float64 (size,); where it was both looked at and seen along, the look counts.

        Raises:
            ValueError: there is no such score, or visits wait for `end_epoch`.
        """
        if self._waiting:
            raise ValueError("an epoch was seen in part: call end_epoch before reading the scores")
        known = [*self._looked, *(ALONG if bool(self._visits.any()) else ())]
        if name not in known:
            raise ValueError(f"there is no score {name!r}, there are {sorted(set(known)) or 'none yet'}")
        if name in self._looked:
            return self._looked[name].clone()
        if name == "el2n":
            return self._sum / self._visits  # 0 / 0 is NaN
        counts = torch.where(self._learnt, self._forgotten.double(), math.inf)
        return torch.where(self._visits > 0, counts, math.nan)

    def table(self) -> pa.Table:
        """Columns `id`, `target` (null where unknown), `visits`, and one for each score, null where an example has none."""
        names = dict.fromkeys([*self._looked, *(ALONG if bool(self._visits.any()) else ())])
        columns: dict[str, Any] = {
            "id": pa.array(range(self.size), pa.int64()),
            "target": pa.array([None if one < 0 else one for one in self._targets.tolist()], pa.int64()),
            "visits": pa.array(self._visits.tolist(), pa.int64()),
        }
        for name in names:
            values = [None if math.isnan(one) else one for one in self.values(name).tolist()]
            columns[name] = pa.array(values, pa.float64())
        return pa.table(columns)

    def state_dict(self) -> dict[str, Any]:
        """All that was taken in; call `end_epoch` first.

        Raises:
            ValueError: visits wait for `end_epoch`.
        """
        if self._waiting:
            raise ValueError("an epoch was seen in part: call end_epoch before saving the scores")
        return {name: value.clone() for name, value in self._held().items()} | {"looked": dict(self._looked)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: it is of another number of examples.
        """
        if len(state["visits"]) != self.size:
            raise ValueError(f"the state is of {len(state['visits'])} examples, these scores of {self.size}")
        for name in self._held():
            setattr(self, f"_{name}", state[name].clone())
        self._looked, self._waiting = dict(state["looked"]), []

    def _held(self) -> dict[str, Tensor]:
        names = ("visits", "sum", "targets", "right", "learnt", "forgotten")
        return {name: getattr(self, f"_{name}") for name in names}

    def _check_ids(self, ids: Tensor, rows: Tensor) -> None:
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError(f"ids must be whole numbers, got {ids.dtype}")
        if ids.ndim != 1 or len(ids) != len(rows):
            raise ValueError(f"there must be one id for each of {len(rows)} examples, got the shape {tuple(ids.shape)}")
        if ids.device.type == "cpu":
            _check_range(ids, self.size)

    def __repr__(self) -> str:
        return f"ExampleScores(size={self.size})"


def _check_range(ids: Tensor, size: int) -> None:
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise ValueError(f"ids must lie in 0..{size - 1}, found {int(ids.min())}..{int(ids.max())}")
    if len(ids) != len(torch.unique(ids)):
        values, counts = torch.unique(ids, return_counts=True)
        raise ValueError(
            f"example {int(values[counts > 1][0])} stands twice in one batch; ids must be of the data set's rows"
        )


def _of_batch(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    wanted: Sequence[str],
    states: Sequence[State | None],
    rates: Sequence[float] | None,
    layer: nn.Linear | None,
) -> dict[str, Tensor]:
    """The wanted scores of one batch."""
    found: dict[str, Tensor] = {}
    if "el2n" in wanted:
        found["el2n"] = torch.stack([el2n(_logits(model, state, inputs, targets), targets) for state in states]).mean(0)
    if "vog" in wanted:
        found["vog"] = gradient_variance(
            torch.stack([input_gradients(model, inputs, targets, state) for state in states])
        )
    if {"grand", "tracin"} & set(wanted):
        squares = torch.stack([_squares(model, inputs, targets, state, layer) for state in states])
        if "grand" in wanted:
            found["grand"] = squares.sqrt().mean(0)
        if "tracin" in wanted:
            weights = torch.tensor(list(rates or ()), dtype=squares.dtype, device=squares.device)
            found["tracin"] = weights @ squares
    return found


def _squares(model: nn.Module, inputs: Tensor, targets: Tensor, state: State | None, layer: nn.Linear | None) -> Tensor:
    """Squared norms of the examples' gradients, a few examples at a time."""
    parts = zip(torch.split(inputs, CHUNK), torch.split(targets, CHUNK), strict=True)
    return torch.cat([example_gradients(model, one, kinds, state, layer).square().sum(1) for one, kinds in parts])


@torch.no_grad()
def _logits(model: nn.Module, state: State | None, inputs: Tensor, targets: Tensor) -> Tensor:
    with untouched(model):
        logits: Tensor = torch.func.functional_call(model, whole_state(model, state), (inputs,))
    check_logits(logits, targets)
    return logits
