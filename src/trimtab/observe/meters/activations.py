"""ActivationStatistics: how large activations are, which channels stand out, which are silent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import number
from trimtab.observe.meters.meter import Meter
from trimtab.parameters import Entry, unwrapped

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
COLUMNS = ("max_abs", "rms", "outliers", "silent")


class ActivationStatistics(Meter):
    """Of the outputs of layers, at the steps looked at: largest magnitude, root mean square, outlier and silent channels.

    A channel is an outlier where its root mean square is more than `outlier` times the median channel's, silent where it is
    zero everywhere. Numbers of a step are those of its last forward pass that took gradients, this rank's.

    Signals: `activation_max` (over the layers), `activation_outliers` and `activation_silent` (largest share of a layer);
    `layers()` has each layer.

    Args:
        model: what is looked at; attach the meter to its optimizer, so that it knows the step.
        layers: shell patterns of module names. Default none: every linear layer and convolution.
        every: as of `Meter`.
        outlier: above 1. Default 6 [ours].

    Raises:
        ValueError: no layer matches, or `outlier` is out of range.

    Reference: outlier features after Dettmers et al., arXiv 2208.07339; [ours] in this form.

    Example:
        >>> import trimtab
        >>> net = nn.Linear(1, 3, bias=False)
        >>> net.weight.data = torch.tensor([[1.0], [-20.0], [0.0]])
        >>> optimizer, meter = torch.optim.SGD(net.parameters(), lr=0.1), ActivationStatistics(net, ["*"])
        >>> handle = trimtab.attach(optimizer, meter, model=net)
        >>> net(torch.ones(2, 1)).sum().backward()
        >>> optimizer.step()
        >>> {name: round(value, 2) for name, value in meter.layers()["(model)"].items()}
        {'max_abs': 20.0, 'rms': 11.56, 'outliers': 0.33, 'silent': 0.33}
    """

    judged = ("activation_max",)

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] = (),
        every: int | Callable[[int], bool] = 1,
        outlier: float = 6.0,
    ) -> None:
        super().__init__(every)
        self.outlier = number("outlier", outlier, above=1)
        chosen = {
            name or "(model)": module
            for name, module in unwrapped(model).named_modules()
            if (
                any(fnmatchcase(name, one) for one in layers)
                if layers
                else isinstance(module, (nn.Linear, *CONVOLUTIONS))
            )
        }
        if not chosen:
            what = (
                f"no module's name matches {tuple(layers)}" if layers else "there is no linear layer and no convolution"
            )
            raise ValueError(f"ActivationStatistics finds nothing to look at in {type(model).__name__}: {what}")
        self._found: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}
        self._hooks = [module.register_forward_hook(self._look(name)) for name, module in chosen.items()]

    def _look(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, outputs: Any) -> None:
            found = outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs
            if self.due and torch.is_grad_enabled() and isinstance(found, Tensor) and found.is_floating_point():
                self._seen[name] = self._statistics(module, found.detach())

        return look

    @torch.no_grad()
    def _statistics(self, module: nn.Module, outputs: Tensor) -> Tensor:
        """What `COLUMNS` names."""
        channels = outputs.movedim(1, -1) if isinstance(module, CONVOLUTIONS) and outputs.ndim > 2 else outputs
        channels = channels.reshape(-1, channels.shape[-1]).to(torch.promote_types(outputs.dtype, torch.float32))
        each = channels.square().mean(0).sqrt()
        return torch.stack(
            [
                channels.abs().amax(),
                each.square().mean().sqrt(),
                (each > self.outlier * each.median()).double().mean(),
                (each == 0).double().mean(),
            ]
        ).double()

    def unbind(self) -> None:
        """Look no more; called by `Handle.remove`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def measure(self, parameters: Sequence[Entry]) -> dict[str, Tensor]:
        """The largest over the layers."""
        self._found, self._seen = self._seen, {}
        if not self._found:
            return {}
        device = next(iter(self._found.values())).device
        rows = torch.stack([row.to(device) for row in self._found.values()]).amax(0)
        return {"activation_max": rows[0], "activation_outliers": rows[2], "activation_silent": rows[3]}

    def layers(self) -> dict[str, dict[str, float]]:
        """max_abs, rms, and shares of outlier and silent channels of each layer; waits for the device."""
        return {name: dict(zip(COLUMNS, row.tolist(), strict=True)) for name, row in self._found.items()}
