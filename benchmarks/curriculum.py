"""What the curriculum costs: sampling, box drawing and span weights against the steps of TRL's SFTTrainer on the same model;
and what bucketing by length gains. CPU time, tiny-llava.

Both trainers run whole: their own loop, collator, loss, optimizer and logging, on the same rows in the same order (SFTTrainer
is given the order that the sampler drew), so texts and images are equally long. Timed are the steps, from the first
one's begin to the last one's end, data loading included, set-up left out. That both train on the same tokens and labels, with
the same unweighted loss, is asserted.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import record
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig, SFTTrainer

from datasets import Dataset
from trimtab.curricula import CurriculumSampler, Mixed
from trimtab.medclm.building import BuildOptions, DataSetFolder, build
from trimtab.medclm.phantom.files import write_phantom
from trimtab.medclm.texts.prompts import prompt_of
from trimtab.medclm.texts.template import TemplateGenerator
from trimtab.medclm.training.collator import Collator, prompt_text
from trimtab.medclm.training.options import TrainOptions
from trimtab.medclm.training.rows import Example, RowData, examples_of
from trimtab.medclm.training.tiny import tiny_llava
from trimtab.medclm.training.trainer import CurriculumTrainer

BATCH, STEPS, EPOCHS, TURNS = 8, 20, 4, int(sys.argv[1]) if len(sys.argv) > 1 else 8


class Clock(TrainerCallback):  # type: ignore[misc]
    """CPU seconds from the first step's begin to the last step's end, and the first step's loss."""

    def __init__(self) -> None:
        self.start = self.end = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The first one starts the clock."""
        self.start = self.start or time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The last one stops it."""
        self.end = time.process_time()

    @property
    def seconds(self) -> float:
        """CPU seconds of the steps."""
        return self.end - self.start


def completions(examples: Sequence[Example], order: Sequence[int], processor: Any) -> Dataset:
    """The same rows as TRL reads them: prompt, completion, images; read when asked for, no box drawn."""
    data = RowData(examples, draw_boxes=False)

    def read(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        items = [data[place] for place in batch["place"]]
        rows = [item["row"] for item in items]
        return {
            "prompt": [prompt_text(processor, prompt_of(row)) for row in rows],
            "completion": [row.target + "</s>" for row in rows],
            "images": [[item["image"]] for item in items],
        }

    return Dataset.from_dict({"place": list(order)}).with_transform(read)


class Plain(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that keeps the given order."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


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


def pair(examples: Sequence[Example]) -> tuple[Any, Any]:
    """(model, processor), the same weights each time."""
    return tiny_llava(f"{prompt_of(one.row)} {one.row.target}" for one in examples)


def options(**others: Any) -> TrainOptions:
    """Of the run with the curriculum; `mixed` decides at each epoch and keeps its shares."""
    return TrainOptions(
        schedule="mixed", steps=STEPS, epochs=EPOCHS, batch=BATCH, lr=1e-4, seed=0, save_every=10**6, **others
    )


def curriculum(examples: Sequence[Example], folder: Path) -> tuple[float, list[int]]:
    """(CPU seconds of the steps, the order of the rows)."""
    clock, data, order = Clock(), RowData(examples), []
    trainer = CurriculumTrainer(*pair(examples), data, options(), folder, callbacks=[clock])
    places = {one.row.row_id: place for place, one in enumerate(examples)}
    collate = trainer.data_collator

    def noted(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        order.extend(places[item["row"].row_id] for item in items)
        return collate(items)  # type: ignore[no-any-return]

    trainer.data_collator = noted
    trainer.train()
    return clock.seconds, order


def plain(examples: Sequence[Example], order: Sequence[int], folder: Path) -> float:
    """CPU seconds of the same steps with SFTTrainer."""
    model, processor = pair(examples)
    given = SFTConfig(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=1e-4, max_length=None,
        lr_scheduler_type="cosine", adam_beta2=0.98, weight_decay=0.05, max_grad_norm=1.0, bf16=False,
        activation_checkpointing=False, save_strategy="no", logging_steps=STEPS // EPOCHS, report_to=[], disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(), remove_unused_columns=False, dataloader_pin_memory=False,
        dataset_kwargs={"skip_prepare_dataset": True}, seed=0,
    )  # fmt: skip
    clock = Clock()
    trainer = Plain(
        model=model, args=given, train_dataset=completions(examples, order, processor), processing_class=processor,
        callbacks=[clock],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.seconds


def assert_agreement(examples: Sequence[Example]) -> None:
    """Of one row, TRL's tokens and labels are ours, and the unweighted loss is the same."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    model, processor = pair(examples)
    theirs = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(
        [completions(examples, [0], processor)[0]]
    )
    ours = Collator(processor)([RowData(examples, draw_boxes=False)[0]])
    assert torch.equal(theirs["input_ids"], ours["input_ids"]), "TRL trains on other tokens"
    assert torch.equal(theirs["labels"], ours["labels"]), "TRL learns other tokens"
    with torch.no_grad():
        found = [
            model(**{key: one[key] for key in ("input_ids", "attention_mask", "labels", "pixel_values")}).loss
            for one in (theirs, ours)
        ]
    assert torch.allclose(*found), found


def tokens_per_second(examples: Sequence[Example], *, bucketed: bool) -> tuple[float, float]:
    """(tokens that are no padding per CPU second, their share of all tokens)."""
    model, processor = pair(examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    data, collate = RowData(examples, draw_boxes=False), Collator(processor)
    rows = [one.row for one in examples]
    order = list(
        CurriculumSampler(
            [row.stage for row in rows], Mixed(), length=BATCH * 8, bucket=BATCH if bucketed else 1,
            lengths=[len(row.question) + len(row.target) for row in rows] if bucketed else None,
        )
    )  # fmt: skip
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
    disable_progress_bar()
    ratios: list[float] = []
    gains: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        examples = phantom(folder)
        assert_agreement(examples)
        for turn in range(TURNS + 1):  # the first warms up
            first, order = curriculum(examples, folder / f"{turn}-a")
            second = plain(examples, order, folder / f"{turn}-b")
            third = plain(examples, order, folder / f"{turn}-c")
            fourth, _ = curriculum(examples, folder / f"{turn}-d")
            ratios.append((first + fourth) / (second + third))
            (mixed, full), (sorted_speed, sorted_full) = (
                tokens_per_second(examples, bucketed=one) for one in (False, True)
            )
            gains.append(sorted_speed / mixed)
    ratio, gain = statistics.median(ratios[1:]), statistics.median(gains[1:])
    record(
        "curriculum",
        [
            {
                "question": "a step with curriculum sampling, box drawing, span weights / a step of TRL's SFTTrainer",
                "ratio": ratio, "least": min(ratios[1:]), "bar": "<= 1.05", "met": ratio <= 1.05,
            },
            {
                "question": f"tokens per second bucketed by length ({sorted_full:.0%} real) / not ({full:.0%} real)",
                "ratio": gain, "bar": "reported as it is", "met": True,
            },
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
