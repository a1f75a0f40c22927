"""What the curriculum costs: sampling, box drawing and span weights against plain fine-tuning steps on the same model; and what
bucketing by length gains. CPU time, tiny-llava.

A plain step: rows in random order, no box drawn, the model's own mean cross-entropy over the labels. Both read, tokenize and
collate the same number of rows of the same set.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import cpu_ratio_in_turns, record

from trimtab.curricula import STAGES, CurriculumSampler, Mixed, row_losses
from trimtab.medclm.building import BuildOptions, DataSetFolder, build
from trimtab.medclm.phantom.files import write_phantom
from trimtab.medclm.texts.template import TemplateGenerator
from trimtab.medclm.training.collator import Collator
from trimtab.medclm.training.rows import Example, RowData, examples_of, instruction
from trimtab.medclm.training.tiny import tiny_llava

BATCH, STEPS, TURNS = 8, 4, int(sys.argv[1]) if len(sys.argv) > 1 else 12


def phantom(folder: Path) -> list[Example]:
    """Training rows of a small drawn set."""
    write_phantom(folder / "source", 40, 0, 128)
    options = BuildOptions(
        detections=folder / "source" / "detections.json", format="coco", images=folder / "source" / "images",
        reader={"modality": "chest X-ray"}, organs=(("rle", {"folder": folder / "source" / "organs"}),), preset="chest",
        embed=False,
    )  # fmt: skip
    build(options, folder / "set", TemplateGenerator(), 1, "local", 1, None)
    return examples_of(DataSetFolder(folder / "set"), ["train"])


def trained(examples: Sequence[Example]) -> tuple[Any, Any, torch.optim.Optimizer]:
    """(model, processor, optimizer)."""
    model, processor = tiny_llava(f"{instruction(one.row.question, True)} {one.row.target}" for one in examples)
    return model, processor, torch.optim.AdamW(model.parameters(), lr=1e-4)


def plain_steps(examples: Sequence[Example]) -> Callable[[], float]:
    """STEPS steps of plain fine-tuning."""
    model, processor, optimizer = trained(examples)
    data, collate, chance = RowData(examples, draw_boxes=False), Collator(processor), random.Random(0)

    def steps() -> float:
        loss = torch.zeros(())
        for _ in range(STEPS):
            batch = collate([data[chance.randrange(len(data))] for _ in range(BATCH)])
            del batch["rows"], batch["weights"]
            loss = model(**batch, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return float(loss)

    return steps


def curriculum_steps(examples: Sequence[Example]) -> Callable[[], float]:
    """STEPS steps with everything the curriculum adds, epochs and decisions included; probes are counted apart."""
    model, processor, optimizer = trained(examples)
    data, collate, rows = RowData(examples), Collator(processor), [one.row for one in examples]
    counts = [sum(row.stage == stage for row in rows) for stage in STAGES]
    scheduler = Mixed(weights=counts)  # the same rows as the plain steps: the stages' texts differ in length
    sampler = CurriculumSampler(
        [row.stage for row in rows], scheduler, [row.domain for row in rows], length=BATCH * STEPS
    )

    def steps() -> float:
        loss, order, seen = torch.zeros(()), list(sampler), []
        for start in range(0, len(order), BATCH):
            batch = collate([data[place] for place in order[start : start + BATCH]])
            chosen, labels, weights = batch.pop("rows"), batch.pop("labels"), batch.pop("weights")
            losses = row_losses(model(**batch, use_cache=False).logits, labels, weights)
            seen.append((chosen, losses.detach()))
            loss = losses.mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        for chosen, losses in seen:
            for row, value in zip(chosen, losses.tolist(), strict=True):
                scheduler.observe(row.domain, row.stage, value)
        scheduler.end_epoch()
        return float(loss)

    return steps


def tokens_per_second(examples: Sequence[Example], bucketed: bool) -> tuple[float, float]:
    """(tokens that are no padding per CPU second, their share of all tokens)."""
    model, processor, optimizer = trained(examples)
    data, collate = RowData(examples, draw_boxes=False), Collator(processor)
    order = random.Random(0).sample(range(len(examples)), BATCH * 8)
    if bucketed:
        order.sort(key=lambda place: len(examples[place].row.target))
    real = every = 0
    start = time.process_time()
    for place in range(0, len(order), BATCH):
        batch = collate([data[one] for one in order[place : place + BATCH]])
        del batch["rows"], batch["weights"]
        real += int(batch["attention_mask"].sum())
        every += batch["attention_mask"].numel()
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return real / (time.process_time() - start), real / every


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        examples = phantom(Path(folder))
        plain, curriculum = plain_steps(examples), curriculum_steps(examples)
        ratio, least = cpu_ratio_in_turns(plain, curriculum, TURNS)
        (mixed, full), (sorted_speed, sorted_full) = (tokens_per_second(examples, flag) for flag in (False, True))
    record(
        "curriculum",
        [
            {
                "question": "a step with curriculum sampling, box drawing, span weights / a plain fine-tuning step, CPU time",
                "ratio": ratio, "least": least, "bar": "<= 1.05", "met": ratio <= 1.05,
            },
            {
                "question": f"tokens per second bucketed by length ({sorted_full:.0%} real) / not ({full:.0%} real)",
                "ratio": sorted_speed / mixed, "bar": "none", "met": True,
            },
        ],
    )  # fmt: skip
    print(json.dumps({"tokens per CPU second": mixed, "bucketed": sorted_speed}))


if __name__ == "__main__":
    main()
