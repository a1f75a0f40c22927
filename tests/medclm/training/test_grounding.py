import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import correlate1d

from trimtab.medclm.records import Box
from trimtab.medclm.training.grounding import View, anchor_loss, attention_loss, box_share, target_map, view
from trimtab.medclm.training.tiny import tiny_llava

SIDE = 60
pixels = st.integers(0, SIDE - 1)


@st.composite
def boxes(draw):
    x0, y0 = draw(pixels), draw(pixels)
    return x0, y0, draw(st.integers(x0 + 1, SIDE)), draw(st.integers(y0 + 1, SIDE))


@settings(max_examples=25, deadline=None)
@given(boxes(), st.sampled_from([1, 2, 4, 6]), st.sampled_from([2, 3, 10, 12]))
def test_the_share_of_a_patch_is_that_of_its_pixels(corners, rows, columns):
    x0, y0, x1, y1 = corners
    painted = np.zeros((SIDE, SIDE))
    painted[y0:y1, x0:x1] = 1
    wanted = painted.reshape(rows, SIDE // rows, columns, SIDE // columns).mean(axis=(1, 3))
    box = Box.of_pixels(x0, y0, x1, y1, SIDE, SIDE)
    assert torch.allclose(box_share(box, rows, columns), torch.tensor(wanted, dtype=torch.float32), atol=1e-6)
    assert target_map(box, rows, columns).sum().item() == pytest.approx(1, abs=1e-5)


def test_the_target_is_the_blurred_box():
    box = Box(x0=0.25, y0=0.5, x1=0.5, y1=0.75)
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / (2 * 3.0**2))
    wanted = box_share(box, 24, 24).double().numpy()
    for axis in (0, 1):
        wanted = correlate1d(wanted, kernel, axis=axis, mode="constant")
    assert np.allclose(target_map(box, 24, 24).numpy(), (wanted / wanted.sum()).ravel(), atol=1e-7)


def test_attention_on_the_target_costs_nothing_and_elsewhere_more():
    box = Box(x0=0.0, y0=0.0, x1=0.5, y1=0.5)
    wide, square = View(2, 4, box), View(3, 3, None)
    images = torch.tensor([[True] * 8 + [False] * 2, [True] * 9 + [False]])
    learnt = torch.tensor([[False] * 8 + [True] * 2] * 2)
    right = torch.zeros(2, 1, 10, 10)
    right[0, 0, 8:, :8] = target_map(box, 2, 4) / 2  # half of the attention goes to the text: it is left out
    right[0, 0, 8:, 8] = 0.5
    assert attention_loss(right, images, learnt, [wide, square]).item() == pytest.approx(0, abs=1e-6)
    even = torch.full((2, 1, 10, 10), 0.1)
    target = target_map(box, 2, 4).double().numpy()
    wanted = float((target * np.log(np.maximum(target, 1e-12) * 8)).sum())
    assert attention_loss(even, images, learnt, [wide, square]).item() == pytest.approx(wanted, rel=1e-4)
    assert attention_loss(even, images, learnt, [square, square]).item() == 0


def test_the_anchor_takes_the_tokens_inside_the_box():
    seen = View(2, 2, Box(x0=0.5, y0=0.0, x1=1.0, y1=0.5))
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0], [1.0, 0.0]])
    words = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    assert anchor_loss([features], [words], [seen]).item() == pytest.approx(0)
    assert anchor_loss([features], [torch.tensor([[5.0, 0.0]])], [seen]).item() == pytest.approx(1)
    nothing = anchor_loss([features, features], [None, words], [seen, View(2, 2, None)])
    assert nothing.item() == 0


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (40, 40)])
def test_a_box_is_where_the_processor_has_put_it(size):
    """LLaVA's processor cuts out the middle square; the box is found again where its pixels went."""
    _, processor = tiny_llava(["a b"], image=16, patch=4, hidden=16, layers=1)
    pictures = processor.image_processor
    pictures.do_center_crop, pictures.size = True, {"shortest_edge": 32}
    pictures.crop_size, pictures.resample = {"height": 32, "width": 32}, Image.Resampling.NEAREST
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), (4, 6, 20, 22))
    box = Box.of_pixels(4, 6, 20, 22, *size)
    channel = pictures([picture], return_tensors="pt")["pixel_values"][0, 0]
    ys, xs = torch.nonzero(channel > channel.mean(), as_tuple=True)
    seen = view(box, size, 16, processor, None)
    assert (seen.rows, seen.columns) == (4, 4)
    found = (xs.min() / 32, ys.min() / 32, (xs.max() + 1) / 32, (ys.max() + 1) / 32)
    assert seen.box.corners == pytest.approx([float(value) for value in found], abs=1 / 32)
    corner = Box.of_pixels(0, 0, 2, 2, *size)
    assert (view(corner, size, 16, processor, None).box is None) == (size[0] != size[1])
    with pytest.raises(ValueError, match="15 image tokens are no grid of 3 x 3"):
        view(box, size, 15, processor, None)
