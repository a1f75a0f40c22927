"""The CUDA kernel's digits, counted by this processor, against a sort."""

from __future__ import annotations

import pytest
import torch

from tests.kernels import compiled
from trimtab.tensors import cuda_selection
from trimtab.tensors.cuda_selection import SOURCE, chunk_table, order_statistics


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return compiled(SOURCE, "count_digits", tmp_path_factory.mktemp("kernel"))


@pytest.fixture
def here(run, monkeypatch):
    monkeypatch.setattr(cuda_selection, "kernel", lambda *_: run)
    monkeypatch.setattr(cuda_selection, "CHUNK", 100)


def scores(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(shape, generator=generator) for shape in ((40, 13), (0,), (7,), (3, 5, 2, 2))]
    found[0][:20] = found[0][:20].round()  # ties, zeros of both signs
    found[2][:3] = torch.tensor([torch.inf, 1e-45, -1e-40])
    found[3] = found[3].to(memory_format=torch.channels_last)
    return found


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_every_rank_is_that_of_a_sort(here, seed, absolute):
    given = scores(seed)
    joined = torch.cat([score.flatten() for score in given])
    ordered = (joined.abs() if absolute else joined).sort().values
    counts = [*range(1, len(ordered) + 1, 7), len(ordered)]
    found = order_statistics(given, counts, absolute=absolute)
    assert found is not None
    for rank, (value, below) in zip(counts, found, strict=True):
        assert value == float(ordered[rank - 1])
        assert below == int((ordered < value).sum())


def test_nan_other_dtypes_and_gaps_are_left_to_torch(here):
    assert order_statistics([torch.tensor([1.0, torch.nan])], [1], absolute=True) is None
    assert order_statistics([torch.ones(2), torch.ones(2).double()], [1], absolute=True) is None
    assert order_statistics([torch.ones(4, 4)[:, ::2]], [1], absolute=True) is None
    assert order_statistics([], [], absolute=True) is None


def test_chunks_cover_every_entry_once(here):
    flats = [torch.zeros(250), torch.zeros(100)]
    table = chunk_table(flats)
    assert table[:, 1].tolist() == [100, 100, 50, 100]
    assert (table[:, 0] - flats[0].data_ptr())[:3].tolist() == [0, 400, 800]
