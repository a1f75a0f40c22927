"""What a training run of MedCLM can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trimtab.checks import below_one, non_negative, number, positive, whole

TINY = "tiny-llava"


@dataclass(frozen=True)
class TrainOptions:
    """Settings of a training run; the defaults of optimizer and schedule are those of the public code beside arXiv 2510.04477.

    Raises:
        ValueError: a setting is out of range.
    """

    model: str = TINY
    """tiny-llava, or a folder or hub name of a LLaVA, VipLlava or Qwen2.5-VL model."""
    schedule: Literal["mixed", "adaptive", "released", "linear", "easy_only", "hard_only", "reverse"] = "mixed"
    """Stage scheduler; mixed is no curriculum, and did better on drawn X-rays than our adaptive one (decision 081)."""
    steps: int = 640
    """Optimizer steps; tiny-llava sees small findings of drawn X-rays after about 500 (ours)."""
    epochs: int = 20
    """Decisions of the scheduler over the run; `steps` is rounded down to a multiple."""
    batch: int = 16
    """Rows of a step on one device."""
    accumulate: int = 1
    """Gradient accumulation."""
    lr: float | None = None
    """Peak learning rate; cosine to `lr_end`. None: 2e-5, and for tiny-llava, which starts from random weights, 5e-3 (ours)."""
    lr_end: float = 1e-6
    """Learning rate at the end."""
    warmup: float = 0.05
    """Share of the steps with rising learning rate."""
    weight_decay: float = 0.05
    """Of AdamW, betas 0.9 and 0.98."""
    clip: float = 1.0
    """Greatest gradient norm; 0 does not clip."""
    lora: int = 0
    """Rank of LoRA on the language model's linear layers; 0 trains all weights."""
    pixels: int = 0
    """Most pixels of an image for Qwen2.5-VL, a token for each 28 x 28; 0 keeps the model's own limit (up to 16,384 tokens)."""
    freeze_vision: bool = False
    """Keep the vision tower as it is; a pretrained one of tiny-llava always is kept."""
    pretrain: int | None = None
    """Epochs in which tiny-llava's vision tower is taught the training pictures' boxes, organs and places before anything else
    (`trimtab medclm pretrain`), after which it stays as it is; 0 begins with a random tower. None: 32; 0 for other models."""
    tower: str = ""
    """Folder of a finished `trimtab medclm pretrain`, whose tower is taken instead."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights' copies in the forward pass."""
    answer: float = 0.8
    """Weight of the answer in Easy and Medium; Hard has the answer only."""
    reasoning: float = 0.2
    """Weight of the reasoning in Easy and Medium."""
    plain: float = 0.0
    """Share of the Easy and Medium rows that want the answer only, without reasoning: what the answer owes to the picture is
    learnt sooner so, and all stages teach the form of such answers."""
    attention: float = 0.0
    """Weight of the term that pulls the last layer's attention to the box (needs attentions, so slower)."""
    anchor: float = 0.0
    """Weight of the term that pulls the image features inside the box to the words "lesion in organ"."""
    boxes: Literal["unit", "model"] = "unit"
    """How boxes stand in the texts: as fractions, or in the model's own way (of the pictures as its processor resizes them)."""
    draw_boxes: bool = True
    """Draw the box on the images of Easy rows."""
    seed: int = 42
    """Of weights and order."""
    bucket: bool = False
    """Batch the rows of an epoch by their length: less padding, but batches of rows alike, often of one stage."""
    workers: int = 0
    """Processes that read images."""
    save_every: int = 0
    """Steps between checkpoints; 0 saves ten times."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    fsdp: bool = False
    """Shard the weights over all devices (start with `torchrun` or `accelerate launch`)."""

    def __post_init__(self) -> None:
        if self.epochs < 2 or self.steps < self.epochs:
            raise ValueError(
                f"epochs must be 2 or more and steps no fewer, got {self.epochs} epochs of {self.steps} steps"
            )
        for name in ("batch", "accumulate"):
            whole(name, getattr(self, name), 1)
        for name in ("lora", "pixels", "workers", "save_every"):
            whole(name, getattr(self, name), 0)
        positive("answer", self.answer)
        positive("lr", self.peak)
        for name in (
            "weight_decay",
            "clip",
            "reasoning",
            "attention",
            "anchor",
            "lr_end",
        ):
            non_negative(name, getattr(self, name))
        below_one("warmup", self.warmup)
        number("plain", self.plain, least=0, most=1)
        if whole("pretrain", self.tower_epochs, 0) and self.model != TINY:
            raise ValueError(
                f"pretrain {self.pretrain}: only the tower of {TINY} is pretrained, not that of {self.model}"
            )
        if self.tower and (self.model != TINY or self.pretrain is not None):
            raise ValueError(
                f"tower {self.tower} is for {TINY} and instead of pretrain, got {self.model}, {self.pretrain}"
            )

    @property
    def peak(self) -> float:
        """The learning rate that is taken."""
        return self.lr if self.lr is not None else 5e-3 if self.model == TINY else 2e-5

    @property
    def tower_epochs(self) -> int:
        """The epochs of pretraining that are taken; 0 with a tower given."""
        if self.pretrain is not None:
            return self.pretrain
        return 32 if self.model == TINY and not self.tower else 0

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps of one epoch of the scheduler."""
        return self.steps // self.epochs
