"""Combiners: the sheet's numbers, torchjd, closed forms, what each rule promises, bad input."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.waves import wave
from trimtab.multitask import CAGrad, Combiner, EqualNorm, GCond, GradientDropout, PCGrad, SimilarityMomentum, gram

ALL: list[Any] = [PCGrad, CAGrad, EqualNorm, GradientDropout, SimilarityMomentum, GCond]
PAIR = torch.tensor([[1, 0.2, -0.5], [-0.8, 0.5, 0.1]], dtype=torch.float64)
ROWS = st.integers(2, 5).flatmap(
    lambda count: st.lists(st.lists(st.floats(-10, 10), min_size=6, max_size=6), min_size=count, max_size=count)
)


def test_pcgrad_and_cagrad_of_two_losses_equal_the_sheets_numbers() -> None:
    assert PCGrad()(PAIR).tolist() == pytest.approx([0.1147286822, 1.232945736, -0.6073643411], rel=1e-9)
    assert CAGrad(c=0.5)(PAIR).tolist() == pytest.approx([0.0071, 0.5304, -0.2440], abs=1e-4)


def test_pcgrad_of_three_losses_is_one_of_the_outcomes_of_its_algorithm() -> None:
    rows = torch.tensor([[1.0, 0.2, -0.5], [-0.8, 0.5, 0.1], [0.1, -1.0, 0.4]], dtype=torch.float64)
    outcomes = []
    for orders in itertools.product(itertools.permutations(range(3)), repeat=3):
        total = torch.zeros(3, dtype=torch.float64)
        for own, order in enumerate(orders):
            bent = rows[own].clone()
            for other in order:
                if other != own:
                    bent -= min(0.0, float(bent @ rows[other])) / float(rows[other] @ rows[other]) * rows[other]
            total += bent
        outcomes.append(total)
    seen = set()
    for seed in range(12):
        found = PCGrad(seed)(rows)
        near = [at for at, one in enumerate(outcomes) if torch.allclose(found, one, atol=1e-12)]
        assert near
        seen.add(near[0])
    assert len(seen) > 1  # the order is drawn


def test_cagrad_of_three_losses_is_the_minimum_over_a_fine_grid() -> None:
    rows = wave(3, 7, seed=2) - 0.3
    mean = rows.mean(0)
    ticks = np.linspace(0, 1, 401)
    first, second = np.meshgrid(ticks, ticks)
    keep = first + second <= 1 + 1e-12
    weights = torch.from_numpy(np.stack([first[keep], second[keep], 1 - first[keep] - second[keep]], 1))
    mixed = weights @ rows
    objective = mixed @ mean + 0.5 * mean.norm() * mixed.norm(dim=1)
    best = mixed[int(objective.argmin())]
    expected = mean + 0.5 * mean.norm() * best / best.norm()
    torch.testing.assert_close(CAGrad(0.5)(rows), expected, atol=5e-3, rtol=0)


def test_cagrad_keeps_the_mean_where_a_mixture_is_zero_and_with_a_radius_of_zero() -> None:
    opposed = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert CAGrad()(opposed).tolist() == [0, 0]
    torch.testing.assert_close(CAGrad(0.0)(PAIR), PAIR.mean(0))


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_cagrad_stays_in_its_ball_and_helps_the_worst_off_at_least_as_much_as_the_mean(rows: list[list[float]]) -> None:
    given_rows = torch.tensor(rows, dtype=torch.float64)
    mean = given_rows.mean(0)
    found = CAGrad(0.5)(given_rows)
    size = float(given_rows.norm())
    assert float((found - mean).norm()) <= 0.5 * float(mean.norm()) * (1 + 1e-6) + 1e-9 * size
    assert float((given_rows @ found).min()) >= float((given_rows @ mean).min()) - 1e-6 * size**2


def test_equal_norm_gives_every_loss_the_mean_norm() -> None:
    rows = torch.diag(torch.tensor([6.0, 2.0, 1.0], dtype=torch.float64))
    assert EqualNorm()(rows).tolist() == pytest.approx([3, 3, 3])
    assert EqualNorm()(torch.cat([rows, torch.zeros(1, 3)])).tolist() == pytest.approx([3, 3, 3])


def test_dropout_passes_one_sign_in_each_element_as_often_as_its_purity() -> None:
    rows = torch.tensor([[3.0], [-1.0]], dtype=torch.float64).repeat(1, 40_000)
    found = GradientDropout()(rows)
    assert set(found.tolist()) == {3.0, -1.0}
    assert float((found > 0).double().mean()) == pytest.approx(0.75, abs=0.01)  # (1 + 2 / 4) / 2
    torch.testing.assert_close(GradientDropout(leak=1.0)(rows), rows.sum(0))
    half = GradientDropout(leak=0.5)(rows)
    assert set(half.tolist()) == {2.5, 0.5}
    agreed = rows.abs()
    torch.testing.assert_close(GradientDropout()(agreed), agreed.sum(0))


def test_dropout_of_the_first_alone_keeps_it_by_its_share_where_the_others_disagree() -> None:
    """R-AMT: `((1 - l) + l [P > u]) a` with `P = (1 + sign(a) (a + b) / (|a| + |b|)) / 2`, so |a| / (|a| + |b|) on conflict."""
    for sign in (1.0, -1.0):
        rows = sign * torch.tensor([[3.0], [-1.0]], dtype=torch.float64).repeat(1, 40_000)
        found = GradientDropout(passes="first")(rows)
        assert set(found.abs().tolist()) == {0.0, 3.0}
        assert float(found.mean()) == pytest.approx(sign * 3.0 * 3 / 4, abs=0.03)
        half = GradientDropout(leak=0.3, passes="first")(rows)
        assert sorted(set(half.abs().tolist())) == pytest.approx([0.9, 3.0])
    a, b = (
        torch.tensor(row, dtype=torch.float64)
        for row in (
            [0.9143688402, 1.009022287, -0.5522530678, -1.180259989, 0.02812030342, 0.4544709386],
            [0.7773763117, 0.06897935159, -1.228444795, -0.5427228599, 0.2785561533, 1.124786167],
        )
    )
    torch.testing.assert_close(GradientDropout(leak=0.7, passes="first")(torch.stack([a, b])), a)  # all agree
    with pytest.raises(ValueError, match="passes"):
        GradientDropout(passes="second")  # type: ignore[arg-type]


SAM_GS = {
    "all": (
        [5.550533672, 13.42802204, 21.68883944, -11.15950211], [8.641733992, 22.27431256, 2.770352903, -10.35713761],
        [0.9027323771, 0.9976285737],
    ),
    "off_diagonal": (
        [0.2597644431, 1.806527223, 2.027046837, -0.2237414882], [5.761496036, 14.85041818, 1.847010945, -6.905165946],
        [0.8540985656, 0.9964428605],
    ),
    "min": (
        [0.2597644431, 1.806527223, 2.027046837, -0.2237414882], [3.349488109, 8.633399864, 1.073773402, -4.014369026],
        [0.7490184817, 0.9941638613],
    ),
}  # fmt: skip


@pytest.mark.parametrize("reduce", SAM_GS)
def test_sam_gs_equals_the_sheets_numbers(reduce: Any) -> None:
    first, second, similarity = SAM_GS[reduce]
    combiner = SimilarityMomentum(reduce=reduce, normalise=False)
    for seed, expected, psi in zip((1, 2), (first, second), similarity, strict=True):
        assert combiner(wave(3, 4, seed=seed)).tolist() == pytest.approx(expected, rel=1e-8)
        assert combiner.similarity == pytest.approx(psi, rel=1e-9)


def test_sam_gs_normalised_keeps_the_direction_and_the_sums_length() -> None:
    printed, ours = SimilarityMomentum(normalise=False), SimilarityMomentum()
    for seed in (1, 2):
        rows = wave(3, 4, seed=seed)
        one, other = printed(rows), ours(rows)
        torch.testing.assert_close(other / other.norm(), one / one.norm())
        assert float(other.norm()) == pytest.approx(float(rows.sum(0).norm()))


GCOND = {
    -0.1: ([0.9969098298, 0.03074680488], [-0.1381965973, 1.989974874], 0.3141592905),
    -0.4: ([0.8478309578, 0.3486630772], [-0.03915479457, 1.833030278], 1.256637068),
    -0.6: ([0.6454692099, 0.4727077202], [0.0, 1.6], 1.745329264),
    -0.95: ([1.0, 0.0], [0.0, 0.6244997998], math.pi),
}


@pytest.mark.parametrize("cosine", GCOND)
def test_gcond_bends_a_pair_as_the_sheet_says(cosine: float) -> None:
    winner, loser, angle = GCOND[cosine]
    rows = torch.tensor([[1, 0], [2 * cosine, 2 * math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    once = GCond(max_iterations=1, momentum=0, weights=(0, 1))
    assert once.angle(cosine) == pytest.approx(angle, abs=1e-7)
    # equal strengths: the first wins
    assert once(rows).tolist() == pytest.approx([a + b for a, b in zip(winner, loser, strict=True)], abs=1e-7)


def test_gcond_hard_by_zones() -> None:
    def pair(cosine: float) -> Tensor:
        return torch.tensor([[1, 0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)

    def hard(cosine: float) -> list[float]:
        return GCond(smooth=False, momentum=0, max_iterations=1)(pair(cosine)).tolist()

    both = pair(-0.3)
    expected = both[0] + 0.3 * both[1] + both[1] + 0.3 * both[0]
    assert hard(-0.3) == pytest.approx(expected.tolist())
    assert hard(-0.6) == pytest.approx([1, 0.8])  # the loser without its part along the winner
    assert hard(-0.9) == pytest.approx([1, 0])  # the loser dropped


def test_gcond_settles_until_no_pair_conflicts() -> None:
    rows = wave(4, 30, seed=3) - 0.4
    bent = GCond()._settle(gram([[row] for row in rows]), [0.0] * 4, [1.0] * 4) @ rows
    before, after = (torch.nn.functional.normalize(one) for one in (rows, bent))
    assert float((before @ before.T).min()) < -0.2
    assert float((after @ after.T).min()) > float((before @ before.T).min())


def test_gcond_the_stable_loss_wins_until_it_has_won_too_often() -> None:
    steady, moving = torch.tensor([1.0, 0.0]), [torch.tensor([-1.0, 0.3]), torch.tensor([-1.0, -0.3])]
    combiner = GCond(momentum=0, max_iterations=1, weights=(1, 0), thresholds=(-0.9, -0.5, 0.0))
    combiner._won = [[], []]
    winners = []
    for step in range(6):
        combiner(torch.stack([moving[step % 2] * 0.1 ** (step % 2), steady]))
        winners.append(combiner._won[1][-1])
    assert winners == [
        False,
        True,
        True,
        True,
        False,
        True,
    ]  # stability 0 at first: the first loss; then three, then it yields


def test_gcond_keeps_the_mean_of_its_results_bias_corrected_and_caps_the_norm() -> None:
    combiner = GCond(momentum=0.9)
    first, second = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(combiner(first), torch.tensor([1.0, 1.0]))
    expected = (0.1 * 0.9 * torch.tensor([1.0, 1.0]) + 0.1 * torch.tensor([3.0, 1.0])) / (1 - 0.81)
    torch.testing.assert_close(combiner(second), expected)
    assert float(GCond(momentum=0, norm_cap=0.5)(first).norm()) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_a_loss_without_gradient_changes_nothing_and_any_scale_is_borne(kind: Any, scale: float) -> None:
    rows = (wave(3, 50, seed=1) * scale).float()
    rows[1] = 0
    assert bool(kind()(rows).isfinite().all())
    if kind in (PCGrad, EqualNorm, GCond, GradientDropout):
        torch.testing.assert_close(kind()(rows), kind()(rows[[0, 2]]), rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("kind", ALL)
def test_gradients_all_zero_give_zero(kind: Any) -> None:
    assert kind()(torch.zeros(3, 4)).tolist() == [0] * 4


@pytest.mark.parametrize("kind", [PCGrad, CAGrad, EqualNorm, GradientDropout])
def test_a_homogeneous_rule_lets_a_factor_through(kind: Any) -> None:
    rows = wave(3, 20, seed=4)
    assert kind.homogeneous
    torch.testing.assert_close(kind()(1024 * rows), 1024 * kind()(rows))


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_without_conflict_pcgrad_and_gcond_are_the_plain_sum(rows: list[list[float]]) -> None:
    given_rows = torch.tensor(rows, dtype=torch.float64).abs()
    for combiner in (PCGrad(), GCond()):
        torch.testing.assert_close(combiner(given_rows), given_rows.sum(0), atol=1e-9, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_pcgrad_of_two_works_against_neither(rows: list[list[float]]) -> None:
    given_rows = torch.tensor(rows[:2], dtype=torch.float64)
    products = given_rows @ PCGrad()(given_rows)
    assert float(products.min()) >= -1e-9 * float(given_rows.square().sum())


@pytest.mark.parametrize("kind", ALL)
def test_saved_and_loaded_it_goes_on_as_before(kind: Any) -> None:
    steps = [wave(3, 40, seed=seed) for seed in range(6)]
    whole = kind()
    expected = [whole(rows) for rows in steps]
    begun, resumed = kind(), kind()
    for rows in steps[:3]:
        begun(rows)
    resumed.load_state_dict(begun.state_dict())
    for rows, wanted in zip(steps[3:], expected[3:], strict=True):
        assert torch.equal(resumed(rows), wanted)


def test_a_state_of_other_settings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the saved state is of .*0\.25.*CAGrad"):
        CAGrad(0.5).load_state_dict(CAGrad(0.25).state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ALL)
def test_halves_are_joined_in_float32(kind: Any, dtype: torch.dtype) -> None:
    rows = wave(3, 300, seed=1).to(dtype)
    found = kind()(rows)
    assert found.dtype == dtype
    if kind is not GradientDropout:  # which draws in float32 and float64 from different numbers
        torch.testing.assert_close(found.double(), kind()(rows.double()), atol=0.05, rtol=0.02)


def test_gram_of_many_parts_equals_one_product() -> None:
    parts = [wave(2, *shape, seed=seed).float() for seed, shape in enumerate([(3000,), (7, 5), (1,), (90, 90), (0,)])]
    rows = torch.cat([part.reshape(2, -1) for part in parts], 1).double()
    torch.testing.assert_close(
        gram([[part[k] for part in parts] for k in range(2)]), rows @ rows.T, rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("rows", [torch.zeros(3), torch.zeros(0, 3), torch.zeros(2, 0)])
def test_what_is_no_matrix_is_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"gradients must be a matrix \(losses, elements\), got the shape"):
        PCGrad()(rows)


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="gradients must be finite, those of loss 1 are not"):
        EqualNorm()(torch.tensor([[1.0, 2.0], [math.nan, 1.0]]))


BAD: list[tuple[Any, str]] = [
    (lambda: CAGrad(-1), "c must be finite and 0 or more, got -1"),
    (lambda: GradientDropout(leak=2), r"leak must lie in \[0, 1\], got 2"),
    (lambda: SimilarityMomentum(reduce="mean"), "reduce must be one of 'off_diagonal', 'min', 'all', got 'mean'"),  # type: ignore[arg-type]
    (lambda: GCond(thresholds=(-0.5, -0.8, 0)), "thresholds must be three rising cosines"),
    (lambda: GCond(weights=(0, 0)), "weights must be 0 or more and not all 0"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), BAD)
def test_bad_settings_are_one_error(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("kind", [SimilarityMomentum, GCond])
def test_another_number_of_losses_is_refused(kind: Any) -> None:
    combiner: Combiner = kind()
    combiner(wave(3, 4))
    with pytest.raises(ValueError, match=r"3 losses, got 2|got 2, before it 3"):
        combiner(wave(2, 4))
