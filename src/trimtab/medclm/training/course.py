"""The curriculum of one training run: what was seen, what is decided, what is saved."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from trimtab.curricula import CurriculumSampler, StageScheduler
from trimtab.files import write_text
from trimtab.inputs import named
from trimtab.medclm.records import Row

PROBE = 4
"""Rows of a probe batch of one domain and stage (ours)."""


class Course(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Tells the scheduler what was seen, closes its epochs, and keeps scheduler and sampler in the Trainer's checkpoints.

    The scheduler's epoch e covers the optimizer steps `e * epoch_steps ... (e + 1) * epoch_steps - 1`; it closes right after
    its last step, before a checkpoint of that step is written. Losses of all ranks are taken together: all decide
    alike.

    Args:
        scheduler, sampler: of the run.
        rows: all training rows, in the order of the sampler's items.
        epoch_steps: optimizer steps of one epoch.
        probe: (items of the data set) -> their losses, without gradient.
        folder: where `stages.jsonl` (decisions) and `losses.jsonl` (mean loss by epoch, domain, stage) are kept.
    """

    def __init__(
        self,
        scheduler: StageScheduler,
        sampler: CurriculumSampler,
        rows: Sequence[Row],
        epoch_steps: int,
        probe: Callable[[list[int]], list[float]],
        folder: Path,
    ) -> None:
        self.scheduler, self.sampler, self.epoch_steps, self.folder = scheduler, sampler, epoch_steps, folder
        self._probe = probe
        self._pools: dict[tuple[str, str], list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            self._pools[row.domain, row.stage].append(place)
        self._seen: list[tuple[list[tuple[str, str]], Tensor]] = []
        self._taken: list[tuple[str, str, float]] = []
        self.losses: list[dict[str, Any]] = []

    def see(self, rows: Sequence[Row], losses: Tensor) -> None:
        """Keep the losses of a batch; they are fetched from the device when the epoch closes."""
        self._seen.append(([(row.domain, row.stage) for row in rows], losses.detach()))

    def _fetch(self) -> list[tuple[str, str, float]]:
        for names, losses in self._seen:
            self._taken += [(*name, loss) for name, loss in zip(names, losses.tolist(), strict=True)]
        self._seen = []
        return self._taken

    def close_epoch(self) -> None:
        """Observe, probe, decide, write the tables."""
        mine = self._fetch()
        everyone: list[Any] = [mine]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, mine)
        sums: dict[tuple[str, str], list[float]] = defaultdict(list)
        for part in everyone:
            for domain, stage, loss in part:
                sums[domain, stage].append(loss)
        self._take(sums, "training")
        wanted = [(domain, stage) for domain in self.scheduler.domains for stage in self.scheduler.stale(domain)]
        if wanted:
            self._take(self._probes(wanted), "probe")
        self._taken = []
        self.scheduler.end_epoch()
        if not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0:
            self.write()

    def _take(self, sums: dict[tuple[str, str], list[float]], source: str) -> None:
        for (domain, stage), values in sorted(sums.items()):
            mean = sum(values) / len(values)
            self.scheduler.observe(domain, stage, mean, len(values))
            self.losses.append(
                {
                    "epoch": self.scheduler.epoch, "domain": domain, "stage": stage, "loss": mean, "n": len(values),
                    "source": source,
                }
            )  # fmt: skip

    def _probes(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[float]]:
        generator = torch.Generator().manual_seed(self.sampler.seed * 1_000_003 + self.scheduler.epoch)
        names: list[tuple[str, str]] = []
        items: list[int] = []
        for name in wanted:
            pool = self._pools[name]
            chosen = torch.randperm(len(pool), generator=generator)[:PROBE].tolist()
            items += [pool[place] for place in chosen]
            names += [name] * len(chosen)
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for name, loss in zip(names, self._probe(items), strict=True):
            found[name].append(loss)
        return found

    def write(self) -> None:
        """Replace `stages.jsonl` and `losses.jsonl`."""
        lines = [json.dumps(asdict(decision)) for decision in self.scheduler.decisions]
        write_text(self.folder / "stages.jsonl", "\n".join(lines) + "\n")
        write_text(self.folder / "losses.jsonl", "".join(json.dumps(line) + "\n" for line in self.losses))

    def state(self) -> dict[str, Any]:
        """What the Trainer saves in `trainer_state.json`."""
        saved = {
            "scheduler": self.scheduler.state_dict(),
            "sampler": self.sampler.state_dict(consumed=0),  # the Trainer skips the batches of the running epoch itself
            "taken": [list(one) for one in self._fetch()],
            "losses": self.losses,
        }
        return {"args": {}, "attributes": {"saved": json.dumps(saved)}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Take over a checkpoint's state.

        Raises:
            ValueError: the checkpoint has none, so that the order could not be the same.
        """
        if state.global_step == 0:
            return
        entry = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        if "saved" not in entry:
            raise ValueError("the checkpoint holds no curriculum: it was not written by this trainer")
        with named("the curriculum in the checkpoint's trainer_state.json"):
            saved = json.loads(entry["saved"])
            self.scheduler.load_state_dict(saved["scheduler"])
            self.sampler.load_state_dict(saved["sampler"])
            self._taken = [(str(domain), str(stage), float(loss)) for domain, stage, loss in saved["taken"]]
            self.losses = list(saved["losses"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Close the epoch after its last step."""
        if state.global_step % self.epoch_steps == 0:
            self.close_epoch()
