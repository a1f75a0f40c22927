"""Models by name: tiny-llava, or any LLaVA / VipLlava / Qwen2.5-VL folder or hub name; LoRA; finished runs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab.inputs import named
from trimtab.medclm.texts.prompts import prompt_of
from trimtab.medclm.training.options import TINY, TrainOptions
from trimtab.medclm.training.rows import Example
from trimtab.medclm.training.tiny import tiny_llava

GROUNDED = ("llava", "vipllava", "qwen2_5_vl")
"""Model types whose image tokens are a grid that is known, so that the grounding terms can be had."""
FAMILIES = (*GROUNDED, "qwen3_vl", "internvl", "paligemma", "gemma3", "florence2")
"""Model types whose whole loop is tested: collator, training, generation."""
LANGUAGE_LAYERS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def load(options: TrainOptions, examples: Sequence[Example], tower: Path | None = None) -> tuple[nn.Module, Any]:
    """(model, processor) to train: in float32 or bfloat16, frozen parts frozen; LoRA comes with the trainer (see `lora`).

    Args:
        options: which model and how.
        examples: what tiny-llava's tokenizer learns from.
        tower: folder of a pretrained vision tower for tiny-llava, which stays as it is.

    Raises:
        FileNotFoundError: the model, or the tower, is neither a local folder nor to be had from the hub.
        ValueError: the model is of no known family, freezing finds no layer to act on, or `pixels` or a grounding term has no
            meaning for it.
    """
    if options.model == TINY:
        texts = (f"{prompt_of(one.row)} {one.row.target}" for one in examples)
        model, processor = tiny_llava(texts, options.seed)
        if tower is not None:
            _put_in(model, tower)
    else:
        # LoRA rests on frozen weights, which bfloat16 holds well enough; weights that learn need float32's small steps
        dtype = getattr(torch, options.precision) if options.lora else torch.float32
        model, processor = _pretrained(options.model, dtype)
    family = getattr(model.config, "model_type", "")
    if (options.attention or options.anchor) and family not in GROUNDED:
        raise ValueError(
            f"--attention and --anchor are for {', '.join(GROUNDED)}; {options.model} is of the family {family}"
        )
    freeze_unused(model)
    if options.freeze_vision or tower is not None:
        towers = [module for name, module in model.named_modules() if name.endswith(("vision_tower", "visual"))]
        if not towers:
            raise ValueError(f"{options.model} has no module vision_tower or visual to freeze")
        for part in towers:
            part.requires_grad_(requires_grad=False)
    if options.pixels:
        _limit(processor.image_processor, options)
    if options.attention:
        model.set_attn_implementation("eager")
    return model, processor


def _put_in(model: Any, tower: Path) -> None:
    """The weights of a pretrained tower into a LLaVA model of the same shape."""
    from transformers import CLIPVisionModel

    if not (tower / "config.json").is_file():
        raise FileNotFoundError(f"{tower} holds no vision tower; `trimtab medclm pretrain` writes one into OUT/tower")
    with named(tower):
        model.model.vision_tower.load_state_dict(CLIPVisionModel.from_pretrained(tower).state_dict())


def freeze_unused(model: Any) -> None:
    """Freeze what LLaVA and VipLlava never use: the vision layers above the deepest one taken, and the norm after the last.

    They would have no gradient and so no optimizer state, which a sharded checkpoint must have of each trained weight.
    """
    taken = getattr(model.config, "vision_feature_layers", None) or getattr(model.config, "vision_feature_layer", None)
    if taken is None:
        return
    tower = next(module for name, module in model.named_modules() if name.endswith("vision_tower"))
    if not hasattr(tower, "encoder") or not hasattr(tower, "post_layernorm"):
        return
    layers, numbers = tower.encoder.layers, [taken] if isinstance(taken, int) else taken
    deepest = max(number if number >= 0 else len(layers) + 1 + number for number in numbers)
    for module in (*layers[deepest:], tower.post_layernorm):
        module.requires_grad_(requires_grad=False)


def lora(options: TrainOptions) -> Any:
    """peft's `LoraConfig` on all linear layers of the language model: alpha twice the rank, no dropout (ours); None for 0."""
    if not options.lora:
        return None
    from peft import LoraConfig

    return LoraConfig(r=options.lora, lora_alpha=2 * options.lora, lora_dropout=0.0, target_modules=LANGUAGE_LAYERS)


def _limit(pictures: Any, options: TrainOptions) -> None:
    if not hasattr(pictures, "merge_size"):
        raise ValueError(f"--pixels {options.pixels}: images of {options.model} have one fixed size; leave it at 0")
    least = pictures.size["shortest_edge"]
    if options.pixels < least:
        raise ValueError(f"--pixels {options.pixels} is below the least of {options.model}, {least}")
    pictures.size = {"shortest_edge": least, "longest_edge": options.pixels}


def _pretrained(name: str, dtype: torch.dtype, *, known: bool = True) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    from transformers.utils.logging import disable_progress_bar

    try:
        disable_progress_bar()
        family = AutoConfig.from_pretrained(name).model_type
        if known and family not in FAMILIES:
            raise ValueError(f"model {name!r} is of the family {family}; training knows {', '.join(FAMILIES)}")
        if family not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise ValueError(f"model {name!r} is of the family {family}, which takes no picture with a text")
        return AutoModelForImageTextToText.from_pretrained(name, dtype=dtype), processor_of(name, family)
    except OSError as error:
        raise FileNotFoundError(
            f"model {name!r} is no folder with a model and its processor, and could not be had from the hub: {error}; "
            f"{TINY} needs nothing"
        ) from error


def processor_of(name: str, family: str) -> Any:
    """The processor of a folder or hub name; of the families with videos without them, where torchvision is not there."""
    import transformers
    from transformers.utils import is_torchvision_available

    if family not in _WITH_VIDEOS or is_torchvision_available():
        return transformers.AutoProcessor.from_pretrained(name)
    return without_videos(getattr(transformers, _WITH_VIDEOS[family])).from_pretrained(name)


_WITH_VIDEOS = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor", "internvl": "InternVLProcessor"}
"""Processors whose part for videos needs torchvision."""


def without_videos(base: Any) -> Any:
    """A processor class of transformers without its part for videos; folders saved from it bear the name of `base`."""

    tiled = "image_seq_length" in inspect.signature(base.__init__).parameters  # tokens of one tile: InternVL's

    # what a processor consists of and keeps is read from these names, so that the third part is not looked for
    def start(
        self: Any,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 256,
        chat_template: Any = None,
    ) -> None:
        more = {"image_seq_length": image_seq_length} if tiled else {}
        base.__init__(self, image_processor, tokenizer, None, chat_template=chat_template, **more)

    def names(self: Any) -> list[str]:
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names, "mm_token_type_ids"]

    return type(base.__name__, (base,), {"__init__": start, "model_input_names": property(names)})


def save(model: Any, processor: Any, folder: Path) -> None:
    """Model and processor into a folder that transformers reads; LoRA is merged into the weights."""
    whole = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    whole.save_pretrained(folder)
    processor.save_pretrained(folder)


def gathered(model: nn.Module) -> dict[str, Any]:
    """The weights of a sharded model, whole and on the CPU of the first process; all processes must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def rebuilt(options: TrainOptions, examples: Sequence[Example], state: dict[str, Any]) -> Any:
    """A model that is not sharded, with these weights."""
    model: Any = load(options, examples)[0]
    if (config := lora(options)) is not None:
        from peft import get_peft_model

        model = get_peft_model(model, config)
    model.load_state_dict(state)
    return model


def model_folder(folder: Path) -> Path:
    """Where the weights of a run lie, or of any other folder: in it."""
    inner = folder / "model"
    return inner if inner.is_dir() else folder


def load_finished(folder: Path, *, known: bool = True) -> tuple[Any, Any]:
    """(model, processor) of a run's `model` folder, or of any folder or hub name, to evaluate; in bfloat16 on a GPU.

    Args:
        folder: what is loaded.
        known: refuse families that `FAMILIES` does not list.
    """
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model, processor = _pretrained(str(model_folder(folder)), dtype, known=known)
    return model.to("cuda" if on_gpu else "cpu").eval(), processor
