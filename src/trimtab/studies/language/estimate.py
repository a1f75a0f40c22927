"""What pruning a language model's folder would cost here; everything is read and checked, nothing is changed or written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch

from trimtab.parameters import Rule, select
from trimtab.pruning.calibration import stages
from trimtab.studies.language.pruning import PruneOptions, chosen_weights
from trimtab.studies.language.ready import Ready


@dataclass(frozen=True)
class Cost:
    """One kind of work: what, how often, and the seconds of one."""

    what: str
    times: int
    seconds: float


@torch.no_grad()
def _timed(call: Callable[[], object]) -> float:
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def estimate_language_pruning(
    folder: Path | str, out: Path | str, options: PruneOptions | None = None, **asked: Any
) -> list[Cost]:
    """The passes through the network that `prune_language_folder` would make, each timed once on this machine.

    Choosing the weights is not in it: less than a pass, but for SparseGPT, whose solver takes about 0.2 seconds of a core for a
    layer of 1024 x 1024 and grows with the cube of the size.

    Args:
        folder, out, options, asked: as `prune_language_folder`, without `note`.

    Raises:
        As `prune_language_folder`.
    """
    options = options or PruneOptions()
    ready = Ready.read(folder, out, options, **asked)
    model: Any = ready.language.model
    names, _ = chosen_weights(model, options)
    costs = []
    if ready.batches:
        entries = select(model, Rule(include=tuple(names), frozen=True)).chosen
        blocks = len(stages(model, entries, "block"))
        row = ready.batches[0].to(model.device)
        seconds = _timed(lambda: model.base_model(input_ids=row, use_cache=False))
        passes = ceil(len(ready.batches) * (1 + (blocks + 1) / 2 + (1 if options.owl else 0)))
        costs.append(Cost(f"calibration: a sequence of {ready.length} tokens through {blocks} blocks", passes, seconds))
    tokens = ready.measured.tokens
    if tokens is not None:
        windows = ceil(len(tokens) / ready.length)
        windows = min(windows, asked.get("windows") or windows)
        row = tokens[: ready.length].unsqueeze(0).to(model.device)
        seconds = _timed(lambda: model(input_ids=row, use_cache=False))
        forms = 1 if "compact" in asked.get("forms", ()) else 0
        costs.append(Cost(f"windows of {ready.texts.where}, before and after", windows * (2 + forms), seconds))
    return costs
