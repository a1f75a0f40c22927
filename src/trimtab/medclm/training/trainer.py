"""TRL's `SFTTrainer` with a curriculum: its sampler, its loss, its levers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from datasets import Dataset
from trimtab.adapters.hugging_face import TrimtabCallback
from trimtab.curricula import CurriculumSampler, create, row_losses
from trimtab.curricula.spans import IGNORED
from trimtab.levers import Lever
from trimtab.medclm.training.collator import Collator
from trimtab.medclm.training.course import Course
from trimtab.medclm.training.grounding import View, anchor_loss, anchor_words, attention_loss
from trimtab.medclm.training.models import lora
from trimtab.medclm.training.options import TrainOptions
from trimtab.medclm.training.rows import RowData
from trimtab.observe import GradientTracker


def arguments(options: TrainOptions, folder: Path, model: nn.Module) -> SFTConfig:
    """The trainer's arguments; FSDP shards layer by layer.

    Raises:
        ValueError: FSDP without accelerators: accelerate (1.15) would silently copy the whole model to every process.
    """
    steps = options.epoch_steps * options.epochs
    # FSDP's own recomputing renames the layers, under which peft finds no adapter to load when a run is resumed
    recomputing = options.checkpointing and options.fsdp and not options.lora
    sharding = None
    if options.fsdp:
        if not torch.accelerator.is_available():
            raise ValueError(
                "--fsdp needs GPUs: on CPUs accelerate shards nothing and copies the model to every process"
            )
        sharding = {
            "version": 2, "state_dict_type": "SHARDED_STATE_DICT", "activation_checkpointing": recomputing,
            "transformer_layer_cls_to_wrap": sorted(layer_classes(model)),
        }  # fmt: skip
    return SFTConfig(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulate, learning_rate=options.peak,
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": min(options.lr_end, options.peak)},
        warmup_steps=round(options.warmup * steps), weight_decay=options.weight_decay, adam_beta1=0.9, adam_beta2=0.98,
        max_grad_norm=options.clip, bf16=options.precision == "bfloat16",
        activation_checkpointing=options.checkpointing and not recomputing, max_length=None,
        seed=options.seed, data_seed=options.seed,
        dataloader_num_workers=options.workers, dataloader_drop_last=True, dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="steps", save_steps=options.save_every or max(steps // 10, 1), save_total_limit=2,
        logging_steps=max(options.epoch_steps, 1), report_to=[], remove_unused_columns=False, disable_tqdm=True,
        ddp_find_unused_parameters=False, use_cpu=not torch.cuda.is_available(),
        fsdp=options.fsdp, fsdp_config=sharding,
    )  # fmt: skip


def layer_classes(model: nn.Module) -> set[str]:
    """Names of the classes of a model's repeated layers, vision and language.

    The model's own list (`_no_split_modules`) also names classes that are not in it, which accelerate refuses.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return {type(layer).__name__ for layers in lists for layer in layers}


def _forward(
    model: nn.Module, inputs: dict[str, Any], labels: Tensor, weights: Tensor, **extra: Any
) -> tuple[Any, Tensor]:
    """(outputs, loss of each row); logits only from the position that predicts the batch's first learnt token on.

    A decoder of its own has one logit a label; a first label that nothing predicts puts them in step.
    """
    if "decoder_input_ids" in inputs:
        outputs = model(**inputs, use_cache=False, **extra)
        labels, weights = (pad(one, (1, 0), value=value) for one, value in ((labels, IGNORED), (weights, 0)))
        return outputs, row_losses(pad(outputs.logits, (0, 0, 0, 1)), labels, weights)
    start = max(int((labels != IGNORED).any(dim=0).nonzero()[0]) - 1, 0)
    outputs = model(**inputs, use_cache=False, logits_to_keep=labels.shape[1] - start, **extra)
    return outputs, row_losses(outputs.logits, labels[:, start:], weights[:, start:])


class CurriculumTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains on `RowData` in the order of a stage scheduler with the span-weighted loss, and resumes exactly.

    `trainer.train(resume_from_checkpoint=...)` goes on as if it had not stopped: weights, optimizer, learning rate, scheduler,
    sampler. Levers act as with any Trainer (see `TrimtabCallback`).

    From TRL come: LoRA put in place from the run's seed and in the types that the distributed strategy needs, gradients at a
    LoRA model's inputs under checkpointing, the refusal of `nn.DataParallel` (it would part rows and tensors), and
    `SFTConfig`'s settings. Ours are the data, the order and the loss. TRL's fused head is not used: on a CPU it takes 1.3 to 3
    times as long, and the logits from the first learnt position on are few. Its model cards and its telemetry are off.

    Args:
        model, processor: from `models.load`; LoRA is put in place here.
        data: the training rows.
        options: of the run.
        folder: for checkpoints and the curriculum's tables.
        levers, tracker: Trimtab's levers, and a tracker of the gradients that they get.
        callbacks: more of transformers' callbacks.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        data: RowData,
        options: TrainOptions,
        folder: Path,
        levers: Sequence[Lever] = (),
        tracker: GradientTracker | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.options = options
        rows = [one.row for one in data.examples]
        given = arguments(options, folder / "checkpoints", model)
        length = {"epochs": options.epochs} if options.schedule in ("linear", "reverse") else {}
        scheduler = create(options.schedule, **length)
        self.sampler = CurriculumSampler(
            [row.stage for row in rows], scheduler, [row.domain for row in rows], seed=options.seed,
            length=options.epoch_steps * options.batch * options.accumulate * given.world_size,
            lengths=[len(row.question) + len(row.target) for row in rows] if options.bucket else None,
            bucket=options.batch if options.bucket else 1,
        )  # fmt: skip
        self.course = Course(scheduler, self.sampler, rows, options.epoch_steps, self._probe, folder)
        chosen: list[TrainerCallback] = [self.course, *callbacks]
        if levers or tracker is not None:
            chosen.append(TrimtabCallback(levers=levers, tracker=tracker))
        # SFTTrainer takes no data set but its own kind, and looks at one row to see that there are images
        stand_in = Dataset.from_dict({"image": [""]})
        super().__init__(
            model=model, args=given, train_dataset=stand_in, processing_class=processor, callbacks=chosen,
            data_collator=Collator(
                processor, options.answer, options.reasoning, views=bool(options.attention or options.anchor)
            ),
            peft_config=lora(options),
        )  # fmt: skip
        self.train_dataset = data
        self.remove_callback(PrinterCallback)

    # our loss is a mean over rows, so the trainer must divide it by the accumulated batches
    loss_is_scaled_for_ga = False

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: what a run was is told by its `run.json`."""

    def _send_telemetry(self) -> None:
        """Tell nobody that a model is trained here."""

    def _get_train_sampler(self, train_dataset: Any = None) -> CurriculumSampler:
        return self.sampler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002  (transformers' signature)
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean over the rows of the weighted cross-entropy, with the grounding terms where they are on."""
        rest = dict(inputs)
        rows, labels, weights = rest.pop("rows"), rest.pop("labels"), rest.pop("weights")
        views: Sequence[View] = rest.pop("views", ())
        asked = {"output_attentions": self.options.attention, "output_hidden_states": self.options.anchor}
        outputs, losses = _forward(model, rest, labels, weights, **{key: True for key, on in asked.items() if on})
        self.course.see(rows, losses)
        loss = losses.mean()
        images = rest["input_ids"] == self.processing_class.image_token_id
        if self.options.attention:
            loss = loss + self.options.attention * attention_loss(outputs.attentions[-1], images, weights > 0, views)
        if self.options.anchor:
            features = [embedded[places] for embedded, places in zip(outputs.hidden_states[0], images, strict=True)]
            loss = loss + self.options.anchor * anchor_loss(features, self._words(rows), views)
        return (loss, outputs) if return_outputs else loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights through `from_pretrained`: it knows the names under which `save_pretrained` wrote them.

        The Trainer's own way loads by the names in the file; of LLaVA models, which are saved under older names, it would load
        nothing and only warn.
        """
        whole = self.model if model is None else model
        if self.is_fsdp_enabled or hasattr(whole, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        whole.load_state_dict(type(whole).from_pretrained(resume_from_checkpoint, dtype=whole.dtype).state_dict())

    def _words(self, rows: Sequence[Any]) -> list[Tensor | None]:
        embed, tokenizer = self.model.get_input_embeddings(), self.processing_class.tokenizer
        found: list[Tensor | None] = []
        for row in rows:
            words = anchor_words(row)
            ids = tokenizer(words, add_special_tokens=False)["input_ids"] if words else None
            found.append(embed(torch.tensor(ids, device=embed.weight.device)).detach() if ids else None)
        return found

    @torch.no_grad()
    def _probe(self, items: list[int]) -> list[float]:
        training = self.model_wrapped.training
        self.model_wrapped.eval()
        found: list[float] = []
        try:
            for start in range(0, len(items), self.options.batch):
                chosen = [self.train_dataset[place] for place in items[start : start + self.options.batch]]
                batch = self._prepare_inputs(self.data_collator(chosen))
                for other in ("rows", "views"):
                    batch.pop(other, None)
                labels, weights = batch.pop("labels"), batch.pop("weights")
                with self.compute_loss_context_manager():
                    found += _forward(self.model_wrapped, batch, labels, weights)[1].tolist()
        finally:
            self.model_wrapped.train(training)
        return found
