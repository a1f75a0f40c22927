"""CSR Linear: the dense layer's numbers, its own state dict, refusal to train."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trimtab.deploy import CsrLinear
from trimtab.observe import summary


def pruned_linear(inputs: int, outputs: int, sparsity: float, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias=bias).double()
    with torch.no_grad():
        layer.weight.masked_fill_(torch.rand_like(layer.weight) < sparsity, 0.0)
    return layer.eval()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    leading=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    sparsity=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    bias=st.booleans(),
    seed=st.integers(0, 100),
)
def test_same_numbers_as_dense(
    sizes: tuple[int, int], leading: tuple[int, ...], sparsity: float, bias: bool, seed: int
) -> None:
    dense = pruned_linear(*sizes, sparsity, bias, seed)
    sparse = CsrLinear(dense)
    given_rows = torch.randn(*leading, sizes[0], dtype=torch.float64)
    out = sparse(given_rows)
    torch.testing.assert_close(out, dense(given_rows), rtol=1e-12, atol=1e-12)
    assert out.is_contiguous()
    assert torch.equal(sparse.to_dense(), dense.weight)
    assert sparse.values.numel() == int(dense.weight.count_nonzero())


def test_state_dict_deepcopy_and_pickle() -> None:
    dense = pruned_linear(9, 7, 0.6)
    sparse, x = CsrLinear(dense), torch.randn(3, 9, dtype=torch.float64)
    expected = sparse(x)  # the matrix is cached now
    for again in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert torch.equal(again(x), expected)
    assert sorted(sparse.state_dict()) == ["bias", "columns", "row_ends", "values"]
    other = CsrLinear(dense)
    with torch.no_grad():
        other.values.zero_()
        assert not torch.equal(other(x), expected)
    other.load_state_dict(sparse.state_dict())
    assert torch.equal(other(x), expected)


def test_follows_changes_of_its_parts() -> None:
    sparse, x = CsrLinear(pruned_linear(9, 7, 0.6, bias=False)), torch.randn(3, 9, dtype=torch.float64)
    before = sparse(x)
    with torch.no_grad():
        sparse.values.mul_(2)
    torch.testing.assert_close(sparse(x), 2 * before)
    assert sparse.float()(x.float()).dtype == torch.float32
    with torch.inference_mode():
        torch.testing.assert_close(sparse(x.float()), (2 * before).float())


def test_does_not_train() -> None:
    sparse = CsrLinear(nn.Linear(3, 2))
    assert not sparse.training
    assert not any(parameter.requires_grad for parameter in sparse.parameters())
    sparse.train()
    with pytest.raises(RuntimeError, match=r"inference only: call model.eval\(\)"):
        sparse(torch.ones(1, 3))


def test_summary_counts_its_products() -> None:
    dense = pruned_linear(16, 8, 0.75)
    found = summary(nn.Sequential(CsrLinear(dense)), torch.ones(4, 16, dtype=torch.float64))
    assert found.sparse_multiply_adds == 4 * int(dense.weight.count_nonzero())
    assert found.uncounted == ()


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="got Conv2d"):
        CsrLinear(nn.Conv2d(1, 1, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bfloat16"):
        CsrLinear(nn.Linear(2, 2).bfloat16())
