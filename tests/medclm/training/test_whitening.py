import numpy as np
import torch
from PIL import Image

from trimtab.medclm.training.sights import normalised
from trimtab.medclm.training.tiny import IMAGE, PATCH, WIDTH, tiny_tower
from trimtab.medclm.training.whitening import MOST, SPREAD, whiten_


def scenes(count=40):
    """Bright and dark halves with a little noise: the large differs a hundred times as much as the small."""
    chance = np.random.default_rng(0)
    found = np.zeros((count, 3, IMAGE, IMAGE))
    for picture in found:
        rough = chance.integers(40, 200, size=(8, 8)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(rough).resize((IMAGE, IMAGE), Image.Resampling.BICUBIC), dtype=float)
        picture[:] = smooth + chance.normal(0, 2, (IMAGE, IMAGE))
    return torch.from_numpy(found.clip(0, 255).round().astype(np.uint8))


def patches(pictures):
    """(patches, 3 * 16 * 16) in float64, by slicing."""
    pixels = normalised(pictures).double().numpy()
    grid = IMAGE // PATCH
    cut = pixels.reshape(len(pixels), 3, grid, PATCH, grid, PATCH).transpose(0, 2, 4, 1, 3, 5)
    return cut.reshape(len(pixels) * grid * grid, -1)


def test_features_of_the_pictures_are_white_as_singular_values_say():
    pictures = scenes()
    torch.manual_seed(0)
    tower = tiny_tower()
    before = tower.embeddings.position_embedding.weight.detach().clone()
    whiten_(tower, pictures)
    said = (
        tower.embeddings(normalised(pictures))[:, 1:].detach().double() - before[1:].double()
    )  # the mean is taken off
    said = said.reshape(-1, WIDTH).numpy()
    assert abs(said.mean(0)).max() < 1e-3
    found = np.linalg.eigvalsh(np.cov(said.T, bias=True))[::-1]
    cut = patches(pictures)
    values = np.linalg.svd(cut - cut.mean(0), compute_uv=False)[:WIDTH] ** 2 / len(cut)
    assert values[0] / values[-1] > 1e3  # of the pictures
    np.testing.assert_allclose(found, np.sort(SPREAD**2 * values / (values + values[-1]))[::-1], rtol=2e-3)
    assert found[0] / found[-1] < 2.01  # of the features


def test_it_is_of_the_seed_and_takes_few_of_many_pictures():
    pictures = scenes(3)

    def weight(shown):
        torch.manual_seed(1)
        tower = tiny_tower()
        whiten_(tower, shown)
        return tower.embeddings.patch_embedding.weight

    assert torch.equal(weight(pictures), weight(pictures))
    many = pictures[:1].expand(2 * MOST, -1, -1, -1).clone()
    many[1::2] = 0  # every second is not looked at
    torch.testing.assert_close(weight(many), weight(pictures[:1].expand(MOST, -1, -1, -1)))


def test_pictures_of_one_grey_give_finite_weights():
    tower = tiny_tower()
    whiten_(tower, torch.full((2, 3, IMAGE, IMAGE), 128, dtype=torch.uint8))
    assert torch.isfinite(tower.embeddings(torch.zeros(1, 3, IMAGE, IMAGE))).all()
