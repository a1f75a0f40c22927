"""SimpleTIR: trajectories with a turn that did nothing are left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CODE = re.compile(r"```.*?\S.*?```", re.DOTALL)
ANSWER = re.compile(r"\\boxed\s*\{|<answer>.*?</answer>", re.DOTALL)


def has_code_or_answer(turn: str) -> bool:
    """Whether a turn holds a whole fenced block of code, or an answer: `\\boxed{` or `<answer>...</answer>`.

    Example:
        >>> has_code_or_answer("I think ..."), has_code_or_answer("```python\\nprint(1)\\n```")
        (False, True)
    """
    return bool(CODE.search(turn) or ANSWER.search(turn))


def void_turn_mask(turns: Sequence[Sequence[str]], productive: Callable[[str], bool] = has_code_or_answer) -> Tensor:
    """Which trajectories stay: those of which every turn of the policy has code or an answer.

    A turn without either ("void") mostly stands where the policy has drifted off; its improbable tokens make gradients
    explode. The whole trajectory is left out: `kept = void_turn_mask(turns)`, then `logp[kept]` and so on. Advantages are
    computed before, from all.

    Args:
        turns: of each trajectory the texts that the policy wrote, turn by turn.
        productive: tells whether a turn is not void. Default `has_code_or_answer` (paper; the forms are ours).

    Returns:
        Booleans of shape (trajectories,).

    Raises:
        ValueError: no trajectory, or one without a turn.
        TypeError: a trajectory is a text instead of a sequence of texts.

    Reference: Xue et al., arXiv 2509.02479.

    Example:
        >>> void_turn_mask([["```run```", "\\\\boxed{4}"], ["hm", "\\\\boxed{4}"]])
        tensor([ True, False])
    """
    if not turns:
        raise ValueError("no trajectory was given")
    for at, trajectory in enumerate(turns):
        if isinstance(trajectory, str):
            raise TypeError(f"trajectory {at} must be a sequence of turns, got the text {trajectory[:20]!r}")
        if not trajectory:
            raise ValueError(f"trajectory {at} has no turn")
    return torch.tensor([all(map(productive, trajectory)) for trajectory in turns])
