"""`tiny-llava`: the real LLaVA architecture at a size that trains on a CPU, built in memory with nothing downloaded."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch

SPECIAL = ("<pad>", "</s>", "<unk>", "<image>")
IMAGE, PATCH, WIDTH, LAYERS = 128, 16, 64, 2
"""Pixels of the picture's and a patch's side; width and layers of both towers."""
SPREAD = 0.1
"""Standard deviation of the language model's first weights, about 1 / sqrt(width): with transformers' 0.02 the attention of so
narrow a model starts flat and stays so (measured)."""
CHAT = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} {% endif %}"
)


def tiny_llava(
    texts: Iterable[str],
    seed: int = 0,
    image: int = IMAGE,
    patch: int = PATCH,
    hidden: int = WIDTH,
    layers: int = LAYERS,
    vocabulary: int = 800,
    context: int = 1024,
) -> tuple[Any, Any]:
    """(`LlavaForConditionalGeneration`, `LlavaProcessor`) with random float32 weights.

    A CLIP vision tower and a Llama language model of `layers` layers each, the last vision layer taken, all patches kept. The
    tokenizer is byte-level BPE with single digits, learnt from `texts`; the image processor resizes to `image` x `image`.

    Args:
        texts: what the tokenizer learns from.
        seed: of the weights.
        image, patch: pixels; (image / patch)² tokens per image. Defaults 128 and 16: 64 tokens.
        hidden: width of both towers, a multiple of 16.
        layers, vocabulary, context: layers of each tower, most tokens, longest sequence.

    Raises:
        ValueError: image is no multiple of patch, or hidden none of 16.
    """
    if image % patch or hidden % 16:
        raise ValueError(f"image {image} must be a multiple of patch {patch}, and hidden {hidden} one of 16")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    words.decoder = decoders.ByteLevel()
    words.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False, min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"}, model_max_length=context,
    )  # fmt: skip
    pictures = CLIPImageProcessorPil(
        size={"height": image, "width": image}, do_center_crop=False, crop_size={"height": image, "width": image}
    )
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=patch, vision_feature_select_strategy="default", chat_template=CHAT,
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=_vision(image, patch, hidden, layers),
        text_config=LlamaConfig(
            **_shape(hidden, layers), initializer_range=SPREAD, intermediate_size=3 * hidden, vocab_size=len(tokenizer),
            max_position_embeddings=context, num_key_value_heads=hidden // 16, pad_token_id=0, bos_token_id=None,
            eos_token_id=1, tie_word_embeddings=True,
        ),
        image_token_index=3, vision_feature_layer=-1, vision_feature_select_strategy="default",
        image_seq_length=(image // patch) ** 2, tie_word_embeddings=True,
    )  # fmt: skip
    quiet = logging.getLogger("transformers")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlavaForConditionalGeneration(config)
    finally:
        quiet.setLevel(level)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 1
    return model, processor


def _shape(hidden: int, layers: int) -> dict[str, int]:
    return {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 16}


def _vision(image: int, patch: int, hidden: int, layers: int) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        **_shape(hidden, layers),
        intermediate_size=4 * hidden,
        image_size=image,
        patch_size=patch,
        projection_dim=hidden,
    )


def tiny_tower() -> Any:
    """A `CLIPVisionModel` as `tiny_llava` has it by default, with random weights of torch's own generator."""
    from transformers import CLIPVisionModel

    return CLIPVisionModel(_vision(IMAGE, PATCH, WIDTH, LAYERS))
