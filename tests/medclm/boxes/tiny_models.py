"""Tiny random models of the families that write boxes in their own way, each with its real processor class, in a folder."""

from pathlib import Path

import torch

from tests.medclm.training.families import QWEN_CHAT, save_qwen
from trimtab.medclm.training.models import without_videos
from trimtab.medclm.training.tiny import CHAT, tiny_llava

WIDTH, LAYERS, SPREAD = 32, 2, 0.1
TEXT = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
SIGLIP = {
    "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def tokenizer_of(texts, **named):
    """Byte-level BPE learnt from the texts, with named special tokens."""
    from transformers import PreTrainedTokenizerFast

    words = tiny_llava(texts, image=16, patch=8, hidden=16, layers=1)[1].tokenizer.backend_tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>",
        extra_special_tokens=named, model_max_length=1024,
    )  # fmt: skip


def qwen3(folder: Path, texts) -> Path:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = tokenizer_of(
        texts, image_token="<|image_pad|>", video_token="<|video_pad|>", vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )  # fmt: skip
    pictures = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 32 * 32}
    )
    processor = without_videos(Qwen3VLProcessor)(pictures, tokenizer, chat_template=QWEN_CHAT)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in tokenizer.all_special_tokens}
    config = Qwen3VLConfig(
        text_config={
            **TEXT, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": len(tokenizer), "pad_token_id": 0,
            "bos_token_id": None, "eos_token_id": 1, "max_position_embeddings": 512, "initializer_range": SPREAD,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0},
        },
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 64, "depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "out_hidden_size": WIDTH, "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=True,
    )  # fmt: skip
    return saved(Qwen3VLForConditionalGeneration, config, processor, folder)


def internvl(folder: Path, texts) -> Path:
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokenizer = tokenizer_of(
        texts,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    pictures = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, max_patches=2)
    processor = without_videos(InternVLProcessor)(
        pictures, tokenizer, image_seq_length=4, chat_template=CHAT.replace("<image>", "<IMG_CONTEXT>")
    )
    config = InternVLConfig(
        text_config={
            **TEXT, "model_type": "qwen2", "num_key_value_heads": 2, "vocab_size": len(tokenizer), "pad_token_id": 0,
            "bos_token_id": None, "eos_token_id": 1, "max_position_embeddings": 512, "initializer_range": SPREAD,
        },
        vision_config={**SIGLIP, "image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4, tie_word_embeddings=True,
    )  # fmt: skip
    return saved(InternVLForConditionalGeneration, config, processor, folder)


def paligemma(folder: Path, texts) -> Path:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = tokenizer_of(texts, image_token="<image>")
    pictures = SiglipImageProcessorPil(size={"height": 32, "width": 32}, image_seq_length=16)
    pictures.image_seq_length = 16
    processor = PaliGemmaProcessor(pictures, tokenizer)
    config = PaliGemmaConfig(
        text_config={
            **TEXT, "model_type": "gemma", "num_key_value_heads": 2, "head_dim": 16, "vocab_size": len(tokenizer),
            "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "max_position_embeddings": 512,
            "initializer_range": SPREAD,
        },
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": WIDTH},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), projection_dim=WIDTH, hidden_size=WIDTH,
    )  # fmt: skip
    return saved(PaliGemmaForConditionalGeneration, config, processor, folder)


def gemma3(folder: Path, texts) -> Path:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = tokenizer_of(
        texts, image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"
    )
    pictures = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = Gemma3Processor(
        pictures, tokenizer, image_seq_length=4, chat_template=CHAT.replace("<image>", "<start_of_image>")
    )
    config = Gemma3Config(
        text_config={
            **TEXT, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": len(tokenizer), "pad_token_id": 0,
            "bos_token_id": None, "eos_token_id": 1, "max_position_embeddings": 512, "initializer_range": SPREAD,
        },
        vision_config={**SIGLIP, "vision_use_head": False},
        mm_tokens_per_image=4, image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
    )  # fmt: skip
    return saved(Gemma3ForConditionalGeneration, config, processor, folder)


def florence2(folder: Path, texts) -> Path:
    from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = tokenizer_of(texts, image_token="<image>")
    tokenizer.add_tokens([f"<loc_{number}>" for number in range(1000)])
    pictures = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    pictures.image_seq_length = 5
    processor = Florence2Processor(pictures, tokenizer)
    config = Florence2Config(
        text_config={
            "model_type": "bart", "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
            "vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": 1,
            "decoder_start_token_id": 1, "forced_eos_token_id": None, "max_position_embeddings": 512, "init_std": SPREAD,
            "dropout": 0.0,
        },
        vision_config={
            "depths": [1, 1], "embed_dim": [16, 32], "num_heads": [2, 2], "num_groups": [2, 2], "patch_size": [7, 3],
            "patch_stride": [8, 4], "patch_padding": [3, 1], "patch_prenorm": [False, True], "window_size": 4,
            "projection_dim": WIDTH, "drop_path_rate": 0.0,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return saved(Florence2ForConditionalGeneration, config, processor, folder)


def saved(kind, config, processor, folder: Path) -> Path:
    torch.manual_seed(0)
    model = kind(config)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 1
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


MODELS = {
    "qwen2_5_vl": save_qwen, "qwen3_vl": qwen3, "internvl": internvl, "paligemma": paligemma, "gemma3": gemma3,
    "florence2": florence2,
}  # fmt: skip
