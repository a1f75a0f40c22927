"""What each model's own image processor makes of a picture: where a marked box lands, to the pixel."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.florence2.processing_florence2 import Florence2PostProcessor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from trimtab.medclm.boxes import format_named, resizing_of
from trimtab.medclm.boxes.resizing import Budgeted, Smart, Stretched, Tiled
from trimtab.medclm.records import Box

SIDES = st.integers(20, 3000)


@given(
    width=SIDES, height=SIDES, factor=st.sampled_from([28, 32]), most=st.sampled_from([256 * 28 * 28, 1280 * 28 * 28])
)
def test_smart_is_qwens_own(width, height, factor, most):
    high, wide = smart_resize(height, width, factor, 3136, most)
    assert Smart(factor, 3136, most)(width, height) == (wide, high)


@given(width=SIDES, height=SIDES, tokens=st.sampled_from([70, 280, 1120]))
def test_budgeted_is_gemmas_own(width, height, tokens):
    high, wide = get_aspect_ratio_preserving_size(height, width, 16, tokens * 9, 3)
    assert Budgeted(16, 3, tokens)(width, height) == (wide, high)


@given(width=SIDES, height=SIDES, most=st.sampled_from([1, 6, 12]))
def test_tiled_is_internvls_own(width, height, most):
    columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, most)
    assert Tiled(448, 1, most)(width, height) == (448 * columns, 448 * rows)


@given(
    st.lists(st.tuples(*[st.integers(0, 140)] * 4), min_size=1, max_size=4), st.sampled_from([(301, 640), (777, 431)])
)
def test_florence_reads_what_is_written_for_it(quarters, size):
    """Florence-2's own processor: the same steps for the same boxes, and its own reading of our answer."""
    own, form = Florence2PostProcessor(None, SimpleNamespace(all_special_tokens=[])), format_named("florence2")
    width, height = size
    near = 0.3001  # no corner on the edge of a step
    pixels = [(x + near, y + near, x + w + 2 + near, y + h + 2 + near) for x, y, w, h in quarters]
    objects = [("nodule", Box.of_pixels(*one, width, height)) for one in pixels]
    steps = own.quantize(torch.tensor(pixels, dtype=torch.float64), size).tolist()
    assert steps == [list(form.numbers(box, size)) for _, box in objects]
    read = own.parse_description_with_bboxes_from_text_and_spans(form.answer(objects, size), image_size=size)
    ours = form.parse(form.answer(objects, size), size)
    assert [one["cat_name"] for one in read] == [one.label for one in ours]
    for theirs, one in zip(read, ours, strict=True):
        x0, y0, x1, y1 = one.corners
        assert np.abs(np.subtract(theirs["bbox"], (x0 * width, y0 * height, x1 * width, y1 * height))).max() <= 1.01


def plane(found):
    """The picture that the model sees, from any processor's pixel values, as (height, width)."""
    pixels = np.asarray(found["pixel_values"][0] if "image_grid_thw" not in found else found["pixel_values"])
    if "image_grid_thw" in found:  # Qwen: patches of 2 x 2, two times over
        _, down, across = (int(one) for one in found["image_grid_thw"][0])
        patch = int((pixels.shape[1] // 6) ** 0.5)
        blocks = pixels.reshape(down // 2, across // 2, 2, 2, 3, 2, patch, patch)[:, :, :, :, 0, 0]
        return blocks.transpose(0, 2, 4, 1, 3, 5).reshape(down * patch, across * patch)
    if "image_position_ids" in found:  # Gemma 4: patches with their places
        places = np.asarray(found["image_position_ids"][0])
        real = places[:, 0] >= 0
        patch = int((pixels.shape[1] // 3) ** 0.5)
        across, down = places[real].max(0) + 1
        blocks = pixels[real].reshape(down, across, patch, patch, 3)[..., 0]
        return blocks.transpose(0, 2, 1, 3).reshape(down * patch, across * patch)
    return pixels[0]


CASES = {
    "qwen2.5": (Qwen2VLImageProcessorPil(), "qwen2.5"),
    "qwen2.5, few pixels": (
        Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 100 * 784}),
        "qwen2.5",
    ),
    "qwen3": (
        Qwen2VLImageProcessorPil(patch_size=16, size={"shortest_edge": 65536, "longest_edge": 16777216}),
        "qwen3",
    ),
    "paligemma": (SiglipImageProcessorPil(size={"height": 224, "width": 224}), "paligemma"),
    "florence2": (CLIPImageProcessorPil(size={"height": 384, "width": 384}, do_center_crop=False), "florence2"),
    "internvl, one tile": (GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}), "internvl"),
    "gemma3": (Gemma3ImageProcessorPil(size={"height": 448, "width": 448}), "gemma"),
    "gemma4": (Gemma4ImageProcessorPil(), "gemma"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(768, 510), (301, 640), (100, 100), (60, 400)])
def test_a_marked_box_lies_where_its_numbers_say(case, size):
    """A white rectangle on black, through the model's own image processor: the numbers written for it are its edges."""
    pictures, name = CASES[case]
    width, height = size
    x0, y0, x1, y1 = width // 5, height // 3, width // 5 + width // 3, height // 3 + height // 4
    marked = np.zeros((height, width, 3), np.uint8)
    marked[y0:y1, x0:x1] = 255
    seen = plane(pictures(images=[Image.fromarray(marked)], return_tensors="np"))
    rule, form = resizing_of(pictures), format_named(name)
    assert rule(width, height) == (seen.shape[1], seen.shape[0])
    middle = (seen.max() + seen.min()) / 2
    rows, columns = np.nonzero((seen > middle).any(1))[0], np.nonzero((seen > middle).any(0))[0]
    there = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    box = Box.of_pixels(x0, y0, x1, y1, width, height)
    numbers = form.numbers(box, rule(width, height))
    corners = form.corners(numbers, rule(width, height))
    back = [
        corners[0] * seen.shape[1],
        corners[1] * seen.shape[0],
        corners[2] * seen.shape[1],
        corners[3] * seen.shape[0],
    ]
    assert np.abs(np.subtract(back, there)).max() <= 1.5
    if name == "qwen2.5":
        assert np.abs(np.subtract(numbers, there)).max() <= 1


@settings(max_examples=20, deadline=None)
@given(st.tuples(st.integers(40, 900), st.integers(40, 900)))
def test_tiles_together_are_the_stretched_picture(size):
    """InternVL's tiles, laid side by side, are the whole picture at the size that the rule says."""
    pictures = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=6)
    ramp = np.tile(np.linspace(0, 255, size[0]).astype(np.uint8)[None, :, None], (size[1], 1, 3))
    tiles = np.asarray(pictures(images=[Image.fromarray(ramp)], return_tensors="np")["pixel_values"])
    wide, high = resizing_of(pictures)(*size)
    number = wide * high // 32**2
    assert len(tiles) == number + (number > 1)
    whole = tiles[:number, 0].reshape(high // 32, wide // 32, 32, 32).transpose(0, 2, 1, 3).reshape(high, wide)
    assert (np.diff(whole[0]) >= -1e-4).all()


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        (CLIPImageProcessorPil(), "CLIPImageProcessorPil with do_center_crop"),
        (Gemma3ImageProcessorPil(do_pan_and_scan=True), "do_pan_and_scan"),
        (LlavaNextImageProcessorPil(), "LlavaNextImageProcessorPil: how it resizes is not known"),
        (SiglipImageProcessorPil(do_resize=False), "do_resize=False"),
        (Qwen2VLImageProcessorPil(size={"height": 3, "width": 3}), "size must say shortest_edge and longest_edge"),
        (object(), "object: how it resizes is not known"),
    ],
)
def test_what_is_not_known_is_refused_by_name(pictures, said):
    with pytest.raises(ValueError, match=said):
        resizing_of(pictures)


def test_a_folder_says_the_same_as_its_processor(tmp_path):
    """Saved by transformers, or as older folders on the hub have it."""
    for name, (pictures, _) in CASES.items():
        pictures.save_pretrained(tmp_path / name)
        assert resizing_of(tmp_path / name) == resizing_of(pictures)
    old = tmp_path / "old"
    old.mkdir()
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
    }
    (old / "preprocessor_config.json").write_text(json.dumps({**settings, "merge_size": 2}))
    assert resizing_of(old) == Smart(28, 3136, 12845056)
    intern = {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "size": {"height": 448, "width": 448},
        "max_patches": 6,
    }
    (old / "preprocessor_config.json").write_text(json.dumps({**intern, "processor_class": "InternVLProcessor"}))
    assert resizing_of(old) == Tiled(448, 1, 6)
    (old / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", "size": 336})
    )
    with pytest.raises(ValueError, match="do_center_crop"):
        resizing_of(old)
    assert resizing_of(CASES["gemma3"][0]) == Stretched(448, 448)
