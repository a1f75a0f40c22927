"""Tiny random models of each family, saved as a folder that is then loaded by name."""

from pathlib import Path

import torch

from trimtab.medclm.training.tiny import CHAT, tiny_llava

QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_CHAT = CHAT.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
WIDTH = 32


def save_llava(folder: Path, texts) -> Path:
    """As the hub's LLaVA 1.5: features of the last layer but one; the shorter side is fitted and the middle square cut out."""
    model, processor = tiny_llava(texts, image=16, patch=4, hidden=WIDTH, layers=2)
    model.config.vision_feature_layer = -2
    processor.image_processor.do_center_crop = True
    processor.image_processor.size = {"shortest_edge": 16}
    return saved(model, processor, folder)


def save_vipllava(folder: Path, texts) -> Path:
    from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

    small, processor = tiny_llava(texts, image=16, patch=4, hidden=WIDTH, layers=2)
    config = VipLlavaConfig(
        vision_config=small.config.vision_config, text_config=small.config.text_config, image_token_index=3,
        vision_feature_layers=[-2, 1], image_seq_length=16, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return saved(VipLlavaForConditionalGeneration(config), processor, folder)


def save_qwen(folder: Path, texts) -> Path:
    """Patches of 4 pixels, 2 x 2 of them a token; the image keeps its shape."""
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    words = tiny_llava(texts, image=16, patch=8, hidden=16, layers=1)[1].tokenizer.backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(QWEN_TOKENS)})
    tokenizer.chat_template = QWEN_CHAT
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS))
    shape = {"hidden_size": WIDTH, "intermediate_size": 48}
    config = Qwen2_5_VLConfig(
        text_config={
            **shape, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer),
            "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        vision_config={
            **shape, "depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 16, "out_hidden_size": WIDTH, "fullatt_block_indexes": [1], "in_channels": 3,
        },
        image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 1
    pictures = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 32 * 32}
    )
    pictures.save_pretrained(folder)  # as on the hub: image processor and tokenizer each in its file
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def saved(model, processor, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


FAMILIES = {"llava": save_llava, "vipllava": save_vipllava, "qwen2_5_vl": save_qwen}
