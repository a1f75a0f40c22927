"""The finished points of a section, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.collectives import from_first_rank, is_distributed, sum_over_ranks
from trimtab.files import write_text
from trimtab.inputs import named, parse_json, utf8

FORMAT = "trimtab landscape 1"
SECONDS = 5.0  # between two writes


class ProgressFile:
    """A JSON file with the losses of finished points; in a process group rank 0 alone reads and writes it.

    Args:
        path: the file; it need not exist.
        identity: of the section, from `fingerprint`.
        centre: the loss at the weights, which the file must agree with (to 1e-5, for batches in another order).
    """

    def __init__(self, path: Path, identity: str, centre: float) -> None:
        self._path, self._identity, self._centre = path, identity, centre
        self._first = not is_distributed() or torch.distributed.get_rank() == 0
        self._written = time.monotonic()

    def read(self, points: int) -> dict[int, float]:
        """Losses by number of the grid point.

        Raises:
            ValueError: the file is none of ours or belongs to another section.
        """
        problem, losses = self._read(points) if self._first else ("", {})
        if from_first_rank(int(bool(problem))):
            raise ValueError(problem or f"{self._path} could not be used, see the first rank's error")
        known = torch.zeros(2, points, dtype=torch.float64)
        for number, loss in losses.items():
            known[:, number] = torch.tensor([1.0, loss], dtype=torch.float64)
        known = sum_over_ranks(known)
        return {number: float(known[1, number]) for number in range(points) if known[0, number]}

    def _read(self, points: int) -> tuple[str, dict[int, float]]:
        if not self._path.exists():
            return "", {}
        try:
            with named(self._path, "is not a file of landscape points; move it away to start anew"):
                held = parse_json(utf8(self._path), "it")
                losses = {int(number): float(loss) for number, loss in held["losses"].items()}
                identity, centre, kind = held["identity"], float(held["centre"]), held["format"]
        except (OSError, ValueError) as error:
            return str(error), {}
        fits = kind == FORMAT and identity == self._identity and all(0 <= number < points for number in losses)
        if not fits or not math.isclose(centre, self._centre, rel_tol=1e-5):
            return (
                f"{self._path} belongs to another section (other weights, directions, grid, data or policy); "
                "move it away to start anew"
            ), {}
        return "", losses

    def write(self, losses: dict[int, float], *, now: bool) -> None:
        """Keep the losses; unless `now`, only when the last write is some seconds old."""
        if not self._first or (not now and time.monotonic() - self._written < SECONDS):
            return
        numbers = {str(number): loss if math.isfinite(loss) else str(loss) for number, loss in sorted(losses.items())}
        content = {"format": FORMAT, "identity": self._identity, "centre": self._centre, "losses": numbers}
        write_text(self._path, json.dumps(content) + "\n")
        self._written = time.monotonic()


def fingerprint(tensors: Iterable[Tensor], rest: Any) -> str:
    """SHA-256 of the tensors' bytes and of the other things' `repr`."""
    digest = hashlib.sha256(repr(rest).encode())
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
