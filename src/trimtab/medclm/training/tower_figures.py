"""How well a pretrained tower sees pictures it was not taught."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.medclm.training.sights import Sights, normalised, patch_truth

BATCH = 64
HELD = 0.5
"""A patch holds what covers this share of it, or what lies in it by this share (ours)."""


def auc(scores: Tensor, holds: Tensor) -> float | None:
    """Area under the receiver operating characteristic, ties counted half; None where all or none hold.

    >>> auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True]))
    0.75
    """
    mine, others = scores[holds], scores[~holds]
    if not len(mine) or not len(others):
        return None
    from scipy.stats import rankdata

    ranks = rankdata(scores.numpy())[holds.numpy()]
    return float((ranks.sum() - len(mine) * (len(mine) + 1) / 2) / (len(mine) * len(others)))


@torch.no_grad()
def figures(teacher: nn.Module, sights: Sights, classes: Sequence[str], organs: Sequence[str]) -> dict[str, Any]:
    """What `pretrain.json` says of the held-out pictures, no box drawn.

    Per class the area under the curve over pictures (the greatest logit of a picture's patches) and over patches, with the
    number of pictures that show it; the mean over organs of the area over patches; the root mean square error of x and y in
    fractions of the side. None where there is nothing to measure.
    """
    device = next(teacher.parameters()).device
    if not len(sights):
        return {"pictures": 0, "classes": {}, "organs": None, "place": None}
    parts = [
        [one.cpu() for one in teacher(normalised(sights.pictures[start : start + BATCH].to(device)))]
        for start in range(0, len(sights), BATCH)
    ]
    lesions, masks, _, place = (torch.cat(group) for group in zip(*parts, strict=True))
    truth = patch_truth(sights, len(classes))
    found = {
        label: {
            "pictures": int(truth.present[:, number].sum()),
            "auc_pictures": auc(lesions[..., number].amax(1), truth.present[:, number] > 0),
            "auc_patches": auc(lesions[..., number].flatten(), truth.lesions[..., number].flatten() >= HELD),
        }
        for number, label in enumerate(classes)
    }
    areas = [auc(masks[..., n].flatten(), truth.organs[..., n].flatten() >= HELD) for n in range(len(organs))]
    known = [area for area in areas if area is not None]
    return {
        "pictures": len(sights),
        "classes": found,
        "organs": sum(known) / len(known) if known else None,
        "place": float((place - truth.place).square().mean().sqrt()),
    }
