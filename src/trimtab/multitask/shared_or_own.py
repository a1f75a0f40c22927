"""SharedOrOwn: a layer that learns which of its parts all tasks share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trimtab.checks import flag, non_negative, number, one_of

Granularity = Literal["layer", "channel", "kernel"]
GRANULARITIES = ("layer", "channel", "kernel")


class _Mask(torch.autograd.Function):
    """`1[s <= threshold]`; backward the gradient of the mask times -1, or as published +1."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: float, sign: float) -> Tensor:
        ctx.sign = sign
        return (scores <= threshold).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.sign * gradients[0], None, None


class SharedOrOwn(nn.Module):
    """A layer for several tasks: a learnt mask says where all use one weight and where each has its own.

    With a score s, uniform in [0, 1) at first: `m = 1[s <= threshold]`, and for task t `W = m W_shared + (1 - m) W_t`, where
    every W_t begins as a copy. Call it as `layer(x, task="depth")`, and add `layer.penalty()` to the loss.

    Args:
        layer: Linear or Conv1d to Conv3d; its weight is the shared one.
        tasks: their names, two or more.
        granularity: one score for the "layer", one for each input "channel" (default) or for each place of the "kernel".
        threshold: of the scores, in (0, 1). Default 0.5 (authors' code).
        penalty: times the mean score: it pushes towards sharing. Default 1e-3.
        published: the mask's gradient goes to the score as it is, as in the authors' code, which is the wrong sign, since the
            mask falls with the score: descent on the score then moves against the loss. Default False: `-dL/dm` [ours].
        generator: of the first scores. Default: torch's own.

    Raises:
        TypeError: the layer is another one.
        ValueError: fewer than two tasks or one twice, an unknown task (at the call), a setting out of range, or kernel places
            of a Linear.

    The bias follows the one score of "layer"; with finer scores it is shared [ours]. Memory: one copy of the layer a task.
    The tasks' weights are parameters `own.NAME`, the scores `scores`.

    Reference: OFVL-MS, arXiv 2308.11928, and its code.

    Example:
        >>> layer = SharedOrOwn(nn.Linear(4, 2), tasks=("depth", "normals"))
        >>> layer(torch.ones(3, 4), task="depth").shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        layer: nn.Module,
        tasks: Iterable[str],
        granularity: Granularity = "channel",
        threshold: float = 0.5,
        penalty: float = 1e-3,
        *,
        published: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            raise TypeError(f"layer must be Linear or Conv1d to Conv3d, got {type(layer).__name__}")
        self.tasks = tuple(tasks)
        if len(self.tasks) < 2 or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks must be two different names or more, got {self.tasks}")
        self.granularity = one_of("granularity", granularity, GRANULARITIES)
        self.threshold = number("threshold", threshold, above=0, below=1)
        self.strength = non_negative("penalty", penalty)
        self.published = flag("published", published)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if granularity == "kernel" and weight.ndim == 2:
            raise ValueError("granularity 'kernel' is of convolutions, this layer is Linear; use 'channel' or 'layer'")
        self.layer = layer
        self.own = nn.ParameterDict({task: nn.Parameter(weight.detach().clone()) for task in self.tasks})
        bias = layer.bias
        self.own_bias = nn.ParameterDict(
            {task: nn.Parameter(bias.detach().clone()) for task in self.tasks}
            if isinstance(bias, Tensor) and granularity == "layer"
            else {}
        )
        kept = {"layer": (), "channel": (1,), "kernel": tuple(range(2, weight.ndim))}[granularity]
        shape = [size if axis in kept else 1 for axis, size in enumerate(weight.shape)]
        drawn = torch.rand(shape, generator=generator, device=generator.device if generator else weight.device)
        self.scores = nn.Parameter(drawn.to(weight))

    @property
    def mask(self) -> Tensor:
        """1 where the weight is shared, of the scores' shape."""
        found: Tensor = _Mask.apply(self.scores, self.threshold, 1.0 if self.published else -1.0)  # type: ignore[no-untyped-call]
        return found

    def penalty(self) -> Tensor:
        """`penalty * mean(scores)`, to be added to the loss."""
        return self.strength * self.scores.mean()

    def forward(self, inputs: Tensor, task: str) -> Tensor:
        """The layer with that task's weight."""
        one_of("task", task, self.tasks)
        mask = self.mask
        assert isinstance(self.layer.weight, Tensor)
        used = {"weight": mask * self.layer.weight + (1 - mask) * self.own[task]}
        if task in self.own_bias:
            assert isinstance(self.layer.bias, Tensor)
            share = mask.flatten()
            used["bias"] = share * self.layer.bias + (1 - share) * self.own_bias[task]
        found: Tensor = functional_call(self.layer, used, (inputs,))
        return found

    def extra_repr(self) -> str:
        """Tasks and settings."""
        return (
            f"tasks={self.tasks}, granularity={self.granularity!r}, threshold={self.threshold}, penalty={self.strength}, "
            f"published={self.published}"
        )
