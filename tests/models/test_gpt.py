"""The GPT that reads bytes: it does not look ahead, positions are distances, its weights are counted."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from trimtab import models
from trimtab.models.gpt import ByteGPT, CausalAttention
from trimtab.parameters import select


def test_no_byte_is_told_by_what_comes_after_it() -> None:
    torch.manual_seed(0)
    net = ByteGPT(num_classes=256, length=12, dim=16, depth=2, heads=2)
    text = torch.randint(256, (1, 12))
    before = net(text)
    text[0, 7] = (text[0, 7] + 1) % 256
    after = net(text)
    assert torch.equal(before[0, :7], after[0, :7])
    assert not torch.allclose(before[0, 7:], after[0, 7:])


def test_attention_against_its_formula_in_float64() -> None:
    torch.manual_seed(0)
    layer = CausalAttention(8, 2, 5).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    query, key, value = (part(x).view(3, 5, 2, 4) for part in (layer.query, layer.key, layer.value))
    rates = [10_000.0 ** (-2 * pair / 4) for pair in (0, 1)]
    expected = torch.zeros(3, 5, 8, dtype=torch.float64)
    for head in range(2):
        for t in range(5):
            scores = []
            for s in range(t + 1):
                # as complex numbers: the pair (x_i, x_{i + 2}), turned by the distance
                total = 0.0
                for pair, rate in enumerate(rates):
                    q = torch.complex(query[:, t, head, pair], query[:, t, head, pair + 2])
                    k = torch.complex(key[:, s, head, pair], key[:, s, head, pair + 2])
                    turn = complex(math.cos((t - s) * rate), math.sin((t - s) * rate))
                    total = total + (q * turn * k.conj()).real
                scores.append(total / 2)  # sqrt(4)
            weights = torch.stack(scores, -1).softmax(-1)
            expected[:, t, 4 * head : 4 * head + 4] = (weights[..., None] * value[:, : t + 1, head]).sum(1)
    assert torch.allclose(layer(x), layer.out(expected), atol=1e-6)  # the turns are kept in float32


def test_the_count_follows_from_the_sizes_and_a_tied_matrix_counts_once() -> None:
    dim, depth = 160, 4
    layer = 4 * (dim * dim + dim) + (4 * dim * dim + 4 * dim) + (4 * dim * dim + dim) + 4 * dim
    expected = 256 * dim + depth * layer + 2 * dim
    net = models.create("byte_gpt", num_classes=256, length=128)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected == 1_278_400
    assert net.head.weight is net.embedding.weight
    names = [entry.name for entry in select(net).chosen]
    assert "embedding.weight" in names
    assert "head.weight" not in names
    apart = models.create("byte_gpt", num_classes=256, length=128, tied=False)
    assert sum(parameter.numel() for parameter in apart.parameters()) == expected + 256 * dim


def test_it_begins_by_guessing() -> None:
    torch.manual_seed(0)
    net = models.create("byte_gpt", num_classes=256, length=64)
    text = torch.randint(256, (8, 65))
    loss = F.cross_entropy(net(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(256), rel=0.03)


def test_texts_and_images_are_not_mistaken_for_each_other() -> None:
    with pytest.raises(ValueError, match=r"'byte_gpt' reads texts .* the data are images"):
        models.create("byte_gpt", num_classes=10)
    with pytest.raises(ValueError, match="'resnet8' takes no argument 'length', so it cannot read texts"):
        models.create("resnet8", num_classes=256, length=64)
    net = ByteGPT(num_classes=256, length=8, dim=16, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"1 to 8 bytes.*got torch.int64 \(1, 9\)"):
        net(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="must be even for rotary positions"):
        ByteGPT(num_classes=256, length=8, dim=6, depth=1, heads=2)
