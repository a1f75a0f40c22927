import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.curricula import SpanWeights, Tokens, row_losses, weighted_cross_entropy

TARGET = "Reasoning: it is dense. Answer: nodule"
SPANS = {"reasoning": (11, 23), "answer": (32, 38)}
BOTH = SpanWeights({"answer": 0.8, "reasoning": 0.2})


def words(text):
    """A tokenizer: words with their offsets, ids by length."""
    offsets, start = [], 0
    for word in text.split(" "):
        offsets.append((start, start + len(word)))
        start += len(word) + 1
    return [end - begin for begin, end in offsets], offsets


def test_loss_of_a_hand_computed_example():
    ids, offsets = words(TARGET)  # Reasoning: it is dense. | Answer: nodule, then the end
    row = BOTH.tokens([50, 51, 52], ids, offsets, SPANS, end=0)
    assert row.labels == (-100, -100, -100, *ids, 0)
    assert row.weights == pytest.approx([0, 0, 0, *[0.2 / 4] * 4, *[0.8 / 3] * 3])
    logits = torch.zeros(1, len(row), 60, dtype=torch.float64)
    answer, reasoning = [], []
    for place in range(3, len(row)):  # the logit that predicts token t stands at t - 1
        logits[0, place - 1, row.ids[place]] = place
        ce = math.log(math.exp(place) + 59) - place
        (reasoning if place < 7 else answer).append(ce)
    expected = 0.8 * sum(answer) / 3 + 0.2 * sum(reasoning) / 4
    loss = weighted_cross_entropy(logits, torch.tensor([row.labels]), torch.tensor([row.weights]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_hard_counts_the_answer_only_and_a_long_reasoning_weighs_no_more():
    ids, offsets = words(TARGET)
    hard = SpanWeights({"answer": 1.0, "reasoning": 0.0}).per_token(offsets, SPANS)
    assert hard == [0, 0, 0, 0, 0.5, 0.5]
    long = "Reasoning: " + "very " * 100 + "dense. Answer: nodule"
    spans = {"reasoning": (11, long.index(" Answer")), "answer": (len(long) - 6, len(long))}
    weights = BOTH.per_token(words(long)[1], spans)
    assert sum(weights[-2:]) == pytest.approx(0.8)
    assert sum(weights[:-2]) == pytest.approx(0.2)
    assert ids


def test_weights_of_a_text_without_reasoning_sum_to_one():
    offsets = words("Answer: nodule")[1]
    assert BOTH.per_token(offsets, {"reasoning": (0, 0), "answer": (8, 14)}) == [0.5, 0.5]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abc. ", min_size=1, max_size=9), min_size=2, max_size=6), st.integers(0, 5), st.data())
def test_weights_always_sum_to_one_and_no_token_is_lost(parts, prompt, data):
    reasoning, answer = "".join(parts[:-1]) + "x", parts[-1] + "x"
    text = f"Reasoning: {reasoning} Answer: {answer}"
    spans = {"reasoning": (11, 11 + len(reasoning)), "answer": (len(text) - len(answer), len(text))}
    cuts = sorted(
        {0, len(text), *data.draw(st.lists(st.integers(1, len(text) - 1), max_size=8)), spans["reasoning"][1]}
    )
    offsets = list(itertools.pairwise(cuts))
    row = BOTH.tokens([9] * prompt, range(100, 100 + len(offsets)), offsets, spans, end=0)
    assert sum(row.weights) == pytest.approx(1)
    assert all((label == -100) == (place < prompt) for place, label in enumerate(row.labels))


def test_offsets_that_count_from_the_prompt_are_refused():
    """Trap: span positions that ignore the prompt. Offsets of prompt and target together do not fit the target's spans."""
    prompt = "what is it ? "
    ids, offsets = words(prompt + TARGET)
    with pytest.raises(ValueError, match="no token lies in the spans"):
        BOTH.per_token(offsets[6:], {"reasoning": (2, 5), "answer": (7, 9)})
    with pytest.raises(ValueError, match="must not go back"):
        BOTH.per_token([*words(prompt)[1], *words(TARGET)[1]], SPANS)
    assert ids


def test_image_expansion_moves_labels_and_weights_along():
    """Trap: the prompt's length counted before image tokens are expanded."""
    ids, offsets = words(TARGET)
    image = 99
    short = BOTH.tokens([image, 5], ids, offsets, SPANS)
    long = short.expanded(image, [576])
    assert len(long) == len(short) + 575
    assert long == BOTH.tokens([image] * 576 + [5], ids, offsets, SPANS)
    naive_labels = (-100,) * 2 + tuple(ids) + (-100,) * 575  # what an uncorrected prompt length gives
    assert long.labels != naive_labels
    assert [i for i, label in zip(long.ids, long.labels, strict=True) if label != -100] == ids
    two = Tokens((image, 1, image, 2), (-100, -100, -100, 2), (0, 0, 0, 1)).expanded(image, [2, 3])
    assert two.ids == (image, image, 1, image, image, image, 2)


@pytest.mark.parametrize(
    ("tokens", "counts", "message"),
    [
        (Tokens((9, 1), (-100, 1), (0, 1)), [], "1 image placeholders"),
        (Tokens((9, 1), (-100, 1), (0, 1)), [0], "each 1 or more"),
        (Tokens((1, 9), (-100, 9), (0, 1)), [2], "images must stand in the prompt"),
    ],
)
def test_wrong_expansions_are_refused(tokens, counts, message):
    with pytest.raises(ValueError, match=message):
        tokens.expanded(9, counts)


def test_labels_that_cover_only_the_prompt_are_refused():
    """Trap: no label over the answer gives NaN from a plain mean, and no step."""
    logits = torch.randn(2, 4, 5)
    labels = torch.tensor([[-100, 1, 2, 3], [-100, -100, -100, -100]])
    plain = torch.nn.functional.cross_entropy(logits[1], labels[1])
    assert plain.isnan()
    with pytest.raises(ValueError, match=r"rows \[1\] of the batch have no label"):
        row_losses(logits, labels, torch.ones(2, 4))
    with pytest.raises(ValueError, match="no label with a weight"):
        row_losses(logits[:1], labels[:1], torch.zeros(1, 4))


def test_padding_does_not_count():
    """Trap: padding not masked. Whatever stands in the padding, the loss and its gradient are those of the bare rows."""
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 7, requires_grad=True)
    labels, weights = torch.tensor([[-100, 3, 1, 2]]), torch.tensor([[0.0, 0.5, 0.25, 0.25]])
    bare = row_losses(logits, labels, weights)
    padded = torch.cat([logits, torch.randn(1, 3, 7) * 50], dim=1)
    more = row_losses(
        padded, torch.cat([labels, torch.full((1, 3), -100)], 1), torch.cat([weights, torch.full((1, 3), 9.0)], 1)
    )
    assert torch.equal(bare, more)


def test_half_logits_are_summed_in_float32_and_agree_with_torch():
    torch.manual_seed(0)
    logits = torch.randn(3, 6, 11)
    labels = torch.randint(0, 11, (3, 6))
    labels[:, 0] = -100
    weights = torch.rand(3, 6) + 0.1
    exact = row_losses(logits.double(), labels, weights)
    half = row_losses(logits.half(), labels, weights)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact.float(), rtol=2e-3, atol=2e-3)
    every = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1), reduction="none", ignore_index=-100
    ).view(3, 5)
    torch.testing.assert_close(exact.float(), (every * weights[:, 1:]).sum(1))


def test_gradient_is_that_of_the_formula():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.tensor([[-100, 3, 1], [-100, 2, -100]]), torch.tensor([[0.0, 0.75, 0.25], [0.0, 1.0, 0.0]])
    weighted_cross_entropy(logits, labels, weights).backward()
    soft = logits.detach().softmax(-1)
    expected = torch.zeros_like(soft)
    for row, token in ((0, 1), (0, 2), (1, 1)):
        expected[row, token - 1] = weights[row, token] / 2 * (soft[row, token - 1] - torch.eye(4)[labels[row, token]])
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpanWeights({}), "not all 0"),
        (lambda: SpanWeights({"a": -1}), "0 or more"),
        (lambda: BOTH.per_token([(0, 3)], {"note": (0, 3)}), "need a text and a weight"),
        (lambda: BOTH.per_token([(0, 9)], {"reasoning": (0, 5), "answer": (4, 9)}), "overlaps"),
        (lambda: SpanWeights({"reasoning": 0.0, "answer": 1.0}).per_token([(0, 3)], {"reasoning": (0, 3)}), "weight 0"),
        (lambda: BOTH.tokens([1], [], [], SPANS), "at least one token"),
        (lambda: row_losses(torch.zeros(1, 2, 3), torch.zeros(1, 3), torch.zeros(1, 3)), "are needed"),
        (lambda: Tokens((1,), (1, 2), (1.0,)), "one of each per token"),
    ],
)
def test_wrong_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
