"""What is claimed of each lever, and which figures must be above zero for it to hold.

A claim is judged by numbers that each seed gives; `above` lists them, so made that the claim says: above zero. Margins (a point
of accuracy, a tenth) stand in the claim's text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from figures import Row

Number = Callable[[Row], float]


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    Attributes:
        lever: name, as in the code.
        card: of docs/methods, without suffix.
        text: what is claimed.
        file: the experiment, `levers-FILE.json`.
        shown: names and values of the figures that are shown, mean and interval over seeds.
        above: values that must be above zero.
        digits: of the shown ones.
    """

    lever: str
    card: str
    text: str
    file: str
    shown: dict[str, Number]
    above: tuple[Number, ...]
    digits: int = 3


def key(name: str, scale: float = 1.0) -> Number:
    """One figure."""
    return lambda row: scale * row[name]


def less(one: str, other: str, margin: float = 0.0) -> Number:
    """`one - other`, and a margin that is allowed."""
    return lambda row: row[one] - row[other] + margin


def points(one: str, other: str) -> dict[str, Number]:
    """Two accuracies in percent: the one, and what it has more than the other."""
    return {one: key(one, 100), f"less {other}": lambda row: 100 * (row[one] - row[other])}


def _over_sum(lever: str, card: str, rule: str) -> Claim:
    text = "two conflicting tasks end with a higher mean accuracy than by the sum"
    return Claim(
        lever, card, text, "multitask", points(f"{rule} even", "sum even"), (less(f"{rule} even", "sum even"),), 1
    )


def _finds(score: str, name: str) -> Claim:
    text = "ranks wrong labels before right ones: area under the curve above 0.5, and above 0.8"
    return Claim(f"ExampleScores: {name}", "example-scores", text, "examples", {"area": key(f"{score} auroc")},
                 (lambda row: row[f"{score} auroc"] - 0.8, lambda row: row[f"{score} auroc"] - 0.5))  # fmt: skip


def _kept(part: int) -> Claim:
    text = f"trained on the easier {part} % by EL2N, more accurate than on a random {part} %"
    pair = f"el2n {part} accuracy", f"random {part} accuracy"
    return Claim("datasets.keep", "example-scores", text, "examples", points(*pair), (less(*pair),), 1)


def _robust(lever: str, rule: str) -> Claim:
    text = "with three liars among ten, 90 % of the accuracy without them; the mean collapses"
    shown = {"accuracy": key(f"{rule} accuracy", 100), "of the clean one": lambda row: 100 * row[f"{rule} accuracy"] / row["clean accuracy"],
             "mean": key("mean accuracy", 100)}  # fmt: skip
    return Claim(lever, "robust-exchange", text, "workers", shown,
                 (lambda row: row[f"{rule} accuracy"] - 0.9 * row["clean accuracy"], lambda row: 0.5 - row["mean accuracy"]), 1)  # fmt: skip


SYSTEMS = {
    "drpo": 9, "batch_advantage": 12, "coding_plan: multiplexed": 14, "MeanWeights": 18, "UShapedTimestep": 19, "pseudo_huber": 19,
    "dot_lengths": 24, "GradientDifference": 26, "GBNNRegressor": 27, "gppo": 29, "InflectionProbe": 30, "dynamic_dpo": 31,
    "BetaDifficultySampler": 38, "GCond": 39, "NoProp": 41, "GradientDropout": 46, "SimilarityMomentum": 51, "VarianceSampler": 52,
    "occurrence_weights": 53, "SharedOrOwn": 54, "EqualNorm": 54, "BatchCoreset": 55, "prior_bias_": 58, "balance (guided scaling)": 58,
    "AttentionResidual": 59, "NearestNeighbourAverage": 61, "GroupClip": 68, "void_turn_mask": 73, "ExampleScores: EL2N": 78,
    "ExampleScores: VoG": 78, "datasets.keep": 78, "negativity": 80, "g2rl": 81,
}  # fmt: skip
"""Which number of docs/systems.yaml a claim belongs to."""

CLAIMS = (
    _over_sum("GCond", "gcond", "gcond"),
    _over_sum("SimilarityMomentum", "similarity-momentum", "sam-gs"),
    Claim("SimilarityMomentum", "similarity-momentum", "a loss of a fiftieth of the other's size is not neglected: the worse task does better than by the sum",
          "multitask", points("sam-gs uneven worst", "sum uneven worst"), (less("sam-gs uneven worst", "sum uneven worst"),), 1),
    Claim("EqualNorm", "equal-norm", "a loss of a fiftieth of the other's size is not neglected: the worse task does better than by the sum", "multitask", points("equal norm uneven worst", "sum uneven worst"),
          (less("equal norm uneven worst", "sum uneven worst"),), 1),
    _over_sum("GradientDropout", "gradient-dropout", "gradient dropout"),
    _over_sum("PCGrad", "pcgrad", "pcgrad"),
    _over_sum("CAGrad", "cagrad", "cagrad"),
    Claim("SharedOrOwn", "shared-or-own", "learns what to share: within a point of the better of sharing all and sharing nothing, where tasks are alike and where they are not",
          "multitask", {"alike: learnt": key("learnt alike", 100), "all shared": key("shared alike", 100), "unlike: learnt": key("learnt unlike", 100),
                        "nothing shared": key("own unlike", 100)},
          (lambda row: row["learnt alike"] - max(row["shared alike"], row["own alike"]) + 0.01,
           lambda row: row["learnt unlike"] - max(row["shared unlike"], row["own unlike"]) + 0.01), 1),
    Claim("SharedOrOwn", "shared-or-own", "shares more where tasks are alike", "multitask",
          {"shared, alike": key("learnt alike share", 100), "unlike": key("learnt unlike share", 100)},
          (less("learnt alike share", "learnt unlike share"),), 1),
    Claim("occurrence_weights", "loss-weights", "a target that one example in fifty holds is learned better, the commonest no worse than by a tenth",
          "multitask", {"rare: error weighted": key("weighted target 2"), "plain": key("plain target 2"), "common: weighted": key("weighted target 0"),
                        "plain ": key("plain target 0")},
          (less("plain target 2", "weighted target 2"), lambda row: 1.1 * row["plain target 0"] - row["weighted target 0"]), 4),
    _finds("el2n", "EL2N"), _finds("forgetting", "forgetting"), _finds("grand", "GraNd"), _finds("vog", "VoG"), _finds("tracin", "TracIn with itself"),
    _kept(70), _kept(90),
    Claim("BatchCoreset", "batch-coreset", "half a batch chosen trains better than half a batch at random, and within a point of the whole batch", "samplers",
          {**points("coreset accuracy", "random accuracy"), "less full": lambda row: 100 * (row["coreset accuracy"] - row["full accuracy"])},
          (less("coreset accuracy", "random accuracy"), less("coreset accuracy", "full accuracy", 0.01)), 1),
    Claim("VarianceSampler", "rollout-samplers", "more groups with right and wrong tries than by uniform draws", "samplers",
          {"mixed, %": key("vas mixed", 100), "uniform": key("uniform mixed", 100)}, (less("vas mixed", "uniform mixed"),), 1),
    Claim("BetaDifficultySampler", "rollout-samplers", "more such groups than VAS and than uniform draws while the policy learns, thanks to its decay", "samplers",
          {"mixed, %": key("vade mixed", 100), "VAS": key("vas mixed", 100), "uniform": key("uniform mixed", 100), "without decay": key("vade without decay mixed", 100)},
          (less("vade mixed", "vas mixed"), less("vade mixed", "uniform mixed"), less("vade mixed", "vade without decay mixed")), 1),
    Claim("prior_bias_", "prior-bias", "one object in 1,000 boxes: the first loss is the prior's entropy (within a twentieth), not ln 2, and 50 steps later still the lower", "samplers",
          {"first loss": key("loss prior 0"), "bias 0": key("loss zero 0"), "after 50 steps": key("loss prior 50"), "bias 0 ": key("loss zero 50")},
          (lambda row: 0.05 - abs(row["loss prior 0"] / row["entropy of the prior"] - 1), less("loss zero 50", "loss prior 50")), 4),
    Claim("balance (guided scaling)", "loss-weights", "a loss beside one of a hundredfold size is learned better, and the large one no worse than by a point", "samplers",
          {"small one unexplained, %": key("to position position", 100), "sum": key("sum position", 100), "accuracy of the large one, %": key("to position class", 100),
           "sum ": key("sum class", 100)},
          (less("sum position", "to position position"), less("to position class", "sum class", 0.01)), 1),
    Claim("pack", "packing", "less padding than rows sorted by length, in at most a hundredth more bins than the least number", "samplers",
          {"padding, %": key("padding packed", 100), "by length": key("padding by length", 100), "at random": key("padding random", 100)},
          (less("padding by length", "padding packed"), lambda row: 1.01 - row["bins over the bound"]), 2),
    Claim("gppo", "gppo", "keeps more entropy than PPO's clipping, after 30 updates and at a reward of 0.9", "policy",
          {"after 30": key("gppo entropy after 30"), "PPO": key("ppo entropy after 30"), "at 0.9": key("gppo entropy at 0.9"), "PPO ": key("ppo entropy at 0.9")},
          (less("gppo entropy after 30", "ppo entropy after 30"), less("gppo entropy at 0.9", "ppo entropy at 0.9"))),
    Claim("gppo", "gppo", "clipped tokens go on teaching: fewer updates to a reward of 0.9, each at its best rate", "policy",
          {"updates": key("gppo tuned updates to 0.9"), "PPO": key("ppo tuned updates to 0.9")}, (less("ppo tuned updates to 0.9", "gppo tuned updates to 0.9"),), 1),
    Claim("drpo", "drpo", "shorter right answers than by PPO with a group advantage, reward no lower than by 0.02", "policy",
          {"tokens": key("drpo wordy length"), "PPO": key("ppo wordy length"), "reward": key("drpo wordy reward"), "PPO ": key("ppo wordy reward")},
          (less("ppo wordy length", "drpo wordy length"), less("drpo wordy reward", "ppo wordy reward", 0.02))),
    Claim("batch_advantage", "batch-advantage", "under a hard limit of length, fewer updates to a reward of 0.9 than with the group's deviation", "policy",
          {"updates": key("batch limited updates to 0.9"), "group": key("ppo limited updates to 0.9")},
          (less("ppo limited updates to 0.9", "batch limited updates to 0.9"),), 1),
    Claim("dot_lengths", "dot-lengths", "answers that are all right get shorter and stay right (0.99); by PPO alone they keep their length", "policy",
          {"tokens at last": key("dot right length"), "at first": key("dot right length at first"), "PPO at last": key("ppo right length"), "reward": key("dot right reward")},
          (less("ppo right length", "dot right length"), lambda row: row["dot right reward"] - 0.99), 2),
    Claim("dynamic_dpo", "dynamic-dpo", "where six of eight rejected answers are far off, more chosen ones end above all than by the mean over all", "policy",
          points("dynamic preferences", "plain preferences"), (less("dynamic preferences", "plain preferences"),), 1),
    Claim("void_turn_mask", "void-turn-mask", "a third of the rollouts drifts off: with them left out the others come right", "policy",
          {"reward": key("masked void reward"), "without the mask": key("plain void reward")}, (less("masked void reward", "plain void reward"),)),
    Claim("void_turn_mask", "void-turn-mask", "the largest gradient is smaller", "policy",
          {"largest gradient": key("masked largest gradient"), "without the mask": key("plain largest gradient")}, (less("plain largest gradient", "masked largest gradient"),)),
    Claim("g2rl", "g2rl", "of four right answers more stay in use, reward no lower than by 0.03", "policy",
          {"answers in use": key("g2rl right words"), "PPO": key("ppo right words"), "reward": key("g2rl open reward"), "PPO ": key("ppo open reward")},
          (less("g2rl right words", "ppo right words"), less("g2rl open reward", "ppo open reward", 0.03)), 2),
    _robust("NearestNeighbourAverage", "nearest"), _robust("Median", "median"), _robust("TrimmedMean", "trimmed"), _robust("Krum", "krum"),
    Claim("coding_plan: multiplexed", "gradient-coding", "less time than gradient coding, each with its best code, and than no code", "workers",
          {"time by uncoded": key("multiplexed time"), "gradient coding": key("gradient coding time")},
          (less("gradient coding time", "multiplexed time"), lambda row: 1 - row["multiplexed time"])),
    Claim("coding_plan: selective repetition", "gradient-coding", "less time than gradient coding, each with its best code, and than no code", "workers",
          {"time by uncoded": key("selective repetition time"), "gradient coding": key("gradient coding time")},
          (less("gradient coding time", "selective repetition time"), lambda row: 1 - row["selective repetition time"])),
    Claim("GradientDifference", "gradient-difference", "of one noise multiplier, more accurate than full gradients in private", "workers",
          points("differences private", "full private"), (less("differences private", "full private"),), 1),
    Claim("GroupClip", "group-clip", "a bound for each layer: more accurate than one bound, at one epsilon", "workers",
          {**points("layers private accuracy", "one private accuracy"), "epsilon": key("layers epsilon")}, (less("layers private accuracy", "one private accuracy"),), 1),
    Claim("MeanWeights", "weight-averaging", "the mean of the weights is flatter than the last ones, and its test loss lower", "schemes",
          {"eigenvalue": key("mean eigenvalue"), "last": key("last eigenvalue"), "test loss": key("mean loss"), "last ": key("last loss")},
          (less("last eigenvalue", "mean eigenvalue"), less("last loss", "mean loss"))),
    Claim("UShapedTimestep", "rectified-flow", "a second flow's single step lands nearer than with even timesteps", "schemes",
          {"distance": key("u squared"), "even": key("even squared")}, (less("even squared", "u squared"),)),
    Claim("pseudo_huber", "rectified-flow", "on U-shaped timesteps, a second flow's single step lands nearer than with the squared error", "schemes",
          {"distance": key("u huber"), "squared": key("u squared")}, (less("u squared", "u huber"),)),
    Claim("NoProp", "noprop", "blocks trained apart are as accurate as a chain trained through, within two points", "schemes",
          points("noprop", "through"), (less("noprop", "through", 0.02),), 1),
    Claim("AttentionResidual", "attention-residual", "the stream does not grow with depth (less than twofold), and is no less accurate than by a point", "schemes",
          {"growth": key("mixed growth"), "added": key("added growth"), "accuracy": key("mixed accuracy", 100), "added ": key("added accuracy", 100)},
          (lambda row: 2 - row["mixed growth"], less("mixed accuracy", "added accuracy", 0.01)), 1),
    Claim("GBNNRegressor", "gbnn", "stages explain more than a perceptron of as many units trained at once", "schemes",
          {"R²": key("gbnn r2"), "at once": key("perceptron r2")}, (less("gbnn r2", "perceptron r2"),)),
    Claim("GradientReversal", "gradient-reversal", "features tell two hospitals apart less well, and the unlabelled one's accuracy is higher", "schemes",
          {"told apart, %": key("reversed told apart", 100), "plain": key("plain told apart", 100), "accuracy": key("reversed elsewhere", 100), "plain ": key("plain elsewhere", 100)},
          (less("plain told apart", "reversed told apart"), less("reversed elsewhere", "plain elsewhere")), 1),
    Claim("InflectionProbe", "inflection-probe", "training four times as long leaves attention with less entropy and the least activation gradient smaller", "observers",
          {"entropy": key("over entropy"), "short": key("under entropy"), "gradient": key("over gradient"), "short ": key("under gradient")},
          (less("under entropy", "over entropy"), less("under gradient", "over gradient")), 4),
    Claim("InflectionProbe", "inflection-probe", "adapters at the candidates learn text B better than as many weights at the other layers, and than at every layer", "observers",
          {"loss": key("adapted candidates"), "other layers": key("adapted other layers"), "every layer": key("adapted every layer")},
          (less("adapted other layers", "adapted candidates"), less("adapted every layer", "adapted candidates"))),
    Claim("negativity", "curvature", "`r_e` falls towards a minimum: from step 0 to 20 to 100 to 400", "landscape",
          {f"step {step}": key(f"ratio {step}") for step in (0, 20, 100, 400)},
          (less("ratio 0", "ratio 20"), less("ratio 20", "ratio 100"), less("ratio 100", "ratio 400"))),
    Claim("effective_rank", "black-box", "finds the rank of what was learned, 2, 4 and 8, within a twentieth", "observers",
          {f"waist {waist}": key(f"rank of waist {waist}") for waist in (2, 4, 8)},
          tuple(lambda row, waist=waist: 0.05 - abs(row[f"rank of waist {waist}"] / waist - 1) for waist in (2, 4, 8)), 2),  # type: ignore[misc]
    Claim("task_cosines", "task-cosines", "is the cosine of the teachers at 30, 90 and 150 degrees, within 0.05; its sign tells whether a step for one task helps another in 95 % of pairs", "observers",
          {"error at 90": key("cosine error 90"), "told right, %": key("signs told right", 100)},
          (*(lambda row, at=at: 0.05 - row[f"cosine error {at}"] for at in (30, 90, 150)), lambda row: row["signs told right"] - 0.95)),  # type: ignore[misc]
)  # fmt: skip
