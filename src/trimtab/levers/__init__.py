"""The lever protocol and `attach`: how a method acts on a training run without owning its loop.

A lever is called once per optimizer step, just before the step, with the gradients that the step will use: unscaled,
accumulated and reduced. `attach` hooks it to any `torch.optim.Optimizer`.
"""

from trimtab.levers.attaching import attach, attached, show
from trimtab.levers.copied import CopiedWhole
from trimtab.levers.handle import Handle
from trimtab.levers.nonfinite import any_nonfinite, gradients_stand, numbers_of, on_any_rank
from trimtab.levers.protocol import Lever, members
from trimtab.levers.wrappers import innermost, layers, refuse_state_elsewhere, takes_closure

__all__ = [
    "CopiedWhole",
    "Handle",
    "Lever",
    "any_nonfinite",
    "attach",
    "attached",
    "gradients_stand",
    "innermost",
    "layers",
    "members",
    "numbers_of",
    "on_any_rank",
    "refuse_state_elsewhere",
    "show",
    "takes_closure",
]
