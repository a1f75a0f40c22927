"""Part 4, MedCLM: LoRA steps of LLaVA shapes with random weights, built in memory, bfloat16: tokens per second and memory."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from part import Part, start


@dataclass(frozen=True)
class Shape:
    """Widths and depths of a LLaVA model, and the batch of a step."""

    label: str
    hidden: int
    layers: int
    heads: int
    groups: int
    inner: int
    vision: tuple[int, int, int, int]
    """Width, layers, image side, patch side."""
    vocabulary: int = 32064
    rows: int = 8
    words: int = 192
    steps: int = 12


SHAPES = (
    Shape("LLaVA of 1.1 billion in its language model", 2048, 22, 32, 4, 5632, (1024, 24, 336, 14)),
    Shape("LLaVA of 6.7 billion in its language model", 4096, 32, 32, 32, 11008, (1024, 24, 336, 14), rows=4),
)
"""TinyLlama's and LLaVA-1.5-7B's shapes behind CLIP-L/14 at 336 pixels, 576 tokens an image."""
LEAST = (20.0, 45.0)
"""Seconds that each needs to be begun."""
TOY = Shape("toy LLaVA", 64, 2, 4, 4, 96, (64, 2, 32, 8), vocabulary=128, rows=2, words=16, steps=3)


def build(shape: Shape, device: Any) -> Any:
    """The model in bfloat16 with LoRA of rank 16 on the language model, made on the device."""
    import torch
    from peft import get_peft_model
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from trimtab.medclm.training.models import freeze_unused, lora
    from trimtab.medclm.training.options import TrainOptions

    width, layers, side, patch = shape.vision
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=max(width // 64, 1),
            image_size=side, patch_size=patch, projection_dim=width,
        ),
        text_config=LlamaConfig(
            hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.groups, vocab_size=shape.vocabulary,
            max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=3, image_seq_length=(side // patch) ** 2,
    )  # fmt: skip
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    freeze_unused(model)
    return get_peft_model(model, lora(TrainOptions(lora=16)))


def measure(part: Part, shape: Shape) -> None:
    """Steps on one batch of random images and words, the weighted loss of the curriculum, AdamW on the adapters."""
    import torch
    from timing import peak_mib, wait
    from torch.nn import functional as F

    import trimtab
    from trimtab.curricula import row_losses
    from trimtab.observe import GradientTracker

    device = part.device
    begun = time.perf_counter()
    model = build(shape, device)
    wait(device)
    built = time.perf_counter() - begun
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3, betas=(0.9, 0.98), fused=True)
    trimtab.attach(optimizer, GradientTracker(), model=model)
    images = (shape.vision[2] // shape.vision[3]) ** 2
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(4, shape.vocabulary, (shape.rows, shape.words), generator=generator)
    ids = torch.cat([torch.full((shape.rows, images), 3), words], dim=1).to(device)
    answers = shape.words // 2
    labels = ids[:, -answers:]
    weights = torch.full(labels.shape, 0.8 / answers, device=device)
    pixels = torch.randn(shape.rows, 3, shape.vision[2], shape.vision[2], device=device, dtype=torch.bfloat16)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        outputs = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), use_cache=False,
                        logits_to_keep=answers + 1)  # fmt: skip
        # the place before the first answer predicts it: a label that is not learnt stands there
        loss = row_losses(outputs.logits.float(), F.pad(labels, (1, 0), value=-100), F.pad(weights, (1, 0))).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    losses, seconds = [step()], []
    peak = peak_mib(step, device)
    for _ in range(shape.steps):
        if seconds and part.left < 3 * max(seconds):
            break
        wait(device)
        begun = time.perf_counter()
        losses.append(step())
        wait(device)
        seconds.append(time.perf_counter() - begun)
    once = statistics.median(seconds)
    part.row(
        f"{shape.label}: tokens per second of a LoRA step, {shape.rows} rows of {ids.shape[1]} tokens, bf16",
        ids.numel() / once, None, step_ms=1e3 * once, steps=len(seconds), peak_mib=peak, seconds_to_build=built,
        weights=sum(parameter.numel() for parameter in model.parameters()), trained=sum(map(torch.Tensor.numel, trained)),
        first_loss=float(losses[0]), last_loss=float(losses[-1]),
    )  # fmt: skip


def main(part: Part) -> None:
    """The shapes that time allows, smallest first."""
    for shape, least in zip((TOY,) if part.dry else SHAPES, LEAST, strict=False):
        part.group(shape.label, lambda one, shape=shape: measure(one, shape), 0.0 if part.dry else least)


if __name__ == "__main__":
    start("medclm", main)
