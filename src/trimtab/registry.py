"""Every lever in one line: name, home, path, what it does, source. Sections of a recipe, flags, lists, docs index and the
battery of tests are derived from these rows. Nothing is imported until it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from trimtab.checks import hint
from trimtab.lazy import at

Home = Literal[
    "penalty", "transform", "wrapper", "optimizer", "solver", "after_step", "schedule", "sampler", "loss", "combiner", "policy_loss",
    "worker", "pruning", "module", "scheme", "precision", "observer", "data",
]  # fmt: skip
HOMES: dict[Home, str] = {
    "optimizer": "takes the step",
    "solver": "minimises the whole objective, its steps take all data",
    "wrapper": "takes the step twice: a second gradient elsewhere",
    "penalty": "adds a term to the loss, or its gradient before the step",
    "transform": "changes the gradient before the step",
    "after_step": "changes the weights after the step",
    "precision": "rounds to number formats",
    "pruning": "removes weights and repairs what is left",
    "schedule": "decides what comes when: stages of the data, batch sizes, learning rates",
    "sampler": "draws the data",
    "loss": "is the loss, or weighs it",
    "combiner": "joins the gradients of several losses",
    "policy_loss": "is the loss of a policy, its advantage or its reward",
    "worker": "joins the gradients of many workers",
    "module": "is part of the network",
    "scheme": "is a whole training procedure",
    "observer": "looks and changes nothing",
    "data": "makes the training set",
}
TRAINED: tuple[Home, ...] = ("penalty", "transform", "wrapper", "optimizer", "after_step")
"""Homes whose levers act in `trimtab train` by name, each with a section of its own in the recipe."""
_SUFFIX = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Entry:
    """One lever.

    Attributes:
        name: of the recipe's section, the flags, the test and the card.
        home: where it acts.
        path: `module:name` of the class or function, imported on use.
        line: what it does, in one line.
        source: arXiv number or publication, or "ours".
        fixed: arguments that the name fixes, as `cram+` is CrAM with plus=True.
        card: file of its card in docs/methods without the suffix, where it shares one with others.
    """

    name: str
    home: Home
    path: str
    line: str
    source: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""

    @property
    def section(self) -> str:
        """Name of its settings; forms of one lever (`cram`, `cram+`) share them."""
        return self.name.rstrip("+")

    @property
    def card_file(self) -> str:
        """Its card, relative to docs."""
        return f"methods/{self.card or self.section.replace('_', '-')}.md"

    def load(self) -> Callable[..., Any]:
        """The class or function itself."""
        found: Callable[..., Any] = at(self.path)
        return found


def index(*rows: Entry) -> dict[str, Entry]:
    """The rows by name.

    Raises:
        ValueError: a name occurs twice, or a home is unknown.
    """
    found: dict[str, Entry] = {}
    for row in rows:
        if row.name in found:
            raise ValueError(f"the lever {row.name!r} is registered twice")
        if row.home not in get_args(Home):
            raise ValueError(f"the lever {row.name!r} has the unknown home {row.home!r}; homes are {get_args(Home)}")
        found[row.name] = row
    return found


# fmt: off
LEVERS = index(
    Entry("sgd", "optimizer", "trimtab.optimizers.plain:sgd", "stochastic gradient descent with momentum, the baseline", "torch.optim.SGD", card="plain-optimizers"),
    Entry("adamw", "optimizer", "trimtab.optimizers.plain:adamw", "Adam with decoupled weight decay", "1711.05101", card="plain-optimizers"),
    Entry("muon", "optimizer", "trimtab.optimizers:Muon", "orthogonalised momentum for matrices, SGD for the rest", "2502.16982"),
    Entry("diffgrad", "optimizer", "trimtab.optimizers:DiffGrad", "Adam damped where the gradient hardly changes", "1909.11015"),
    Entry("adamp", "optimizer", "trimtab.optimizers:AdamP", "AdamW without the part of the step along scale-invariant weights", "2006.08217"),
    Entry("sgdp", "optimizer", "trimtab.optimizers:SGDP", "SGD without the part of the step along scale-invariant weights", "2006.08217", card="adamp"),
    Entry("classp", "optimizer", "trimtab.optimizers:CLASSP", "only large gradients move a weight, the less the more it has moved", "2405.09637"),
    Entry("fira", "optimizer", "trimtab.optimizers:Fira", "Adam in a low-rank subspace, the rest of the gradient scaled alike", "2410.01623"),
    Entry("grad_norm_smooth", "solver", "trimtab.optimizers:GradNormSmooth", "Newton's method regularised by the gradient's norm over a learned smoothness", "2506.13710"),
    Entry("sam", "wrapper", "trimtab.optimizers:SAM", "sharpness-aware minimisation", "2010.01412"),
    Entry("asam", "wrapper", "trimtab.optimizers:ASAM", "adaptive sharpness-aware minimisation", "2102.11600"),
    Entry("cram", "wrapper", "trimtab.optimizers:CrAM", "compression-aware minimisation", "2207.14200", {"plus": False}),
    Entry("cram+", "wrapper", "trimtab.optimizers:CrAM", "compression-aware minimisation with the plain gradient added", "2207.14200", {"plus": True}),
    Entry("drift", "wrapper", "trimtab.optimizers:DriftLearningRate", "learning rate from how fast the gradient turns along itself", "2302.01952"),
    Entry("var", "penalty", "trimtab.penalties:VarianceAmplifier", "variance amplifying regularizer", "2511.14282"),
    Entry("l1", "penalty", "trimtab.penalties:L1", "sum of magnitudes", "Tibshirani 1996"),
    Entry("hoyer", "penalty", "trimtab.penalties:HoyerSquare", "Hoyer-Square, (sum |w|)^2 / sum w^2 per tensor", "1908.09979", card="hoyer-square"),
    Entry("concentrate", "after_step", "trimtab.penalties:Concentrate", "pull towards zero by the weights' own scale, their norm restored", "ours"),
    Entry("proximal_l1", "after_step", "trimtab.penalties:ProximalL1", "soft threshold after the step: L1 decoupled from the gradient", "Combettes 2005"),
    Entry("spike_guard", "after_step", "trimtab.optimizers:SpikeGuard", "loss, gradient and update watched: the step that goes wrong is told, skipped or undone", "ours", card="spike-guard"),
    Entry("momentum_reset", "after_step", "trimtab.optimizers:MomentumReset", "the optimizer's moments forgotten every so many steps, with a short warm-up", "2501.06842", card="momentum-reset"),
    Entry("radius", "after_step", "trimtab.optimizers:ConvergenceRadius", "no step further than softmax's Taylor series converges", "2603.13552"),
    Entry("ema", "after_step", "trimtab.averaging:EMA", "exponential moving average of the weights, put in at the end", "Polyak 1992", card="weight-averaging"),
    Entry("mean_weights", "after_step", "trimtab.averaging:MeanWeights", "mean of the weights over the end of the run, put in at its end", "1803.05407", card="weight-averaging"),
    Entry("safe", "penalty", "trimtab.penalties:SAFE", "pull to a sparse copy that is projected in the end; with sam as published", "2506.06866"),
    Entry("autoscale", "transform", "trimtab.gradients:Autoscale", "gradient autoscaled normalisation: centred, scaled by a global factor", "2509.03677"),
    Entry("zscore", "transform", "trimtab.gradients:ZScore", "gradients of each layer to mean 0, deviation 1", "2408.01215"),
    Entry("centralize", "transform", "trimtab.gradients:Centralize", "mean of each output row removed", "2004.01461"),
    Entry("adaptive_clip", "transform", "trimtab.gradients:AdaptiveClip", "gradient norm of each unit clipped by its weight norm", "2102.06171"),
    Entry("perpendicular", "transform", "trimtab.gradients:PerpendicularGradient", "part of the gradient along the weights taken off", "2501.04697"),
    Entry("norm_growth", "transform", "trimtab.gradients:NormGrowthLimiter", "growth of each gradient's norm from step to step limited", "2410.01623"),
    Entry("zclip", "transform", "trimtab.gradients:ZClip", "joint norm clipped where it lies too many deviations above its running mean", "2504.02507"),
    Entry("ada_gc", "transform", "trimtab.gradients:AdaGC", "each tensor's gradient clipped by the running mean of its own norm", "2502.11034"),
    Entry("norm_match", "module", "trimtab.gradients:NormMatch", "gradients into the branches of a network brought to one size", "2307.16617"),
    Entry("gradient_reversal", "module", "trimtab.gradients:GradientReversal", "identity whose gradient is turned round", "1409.7495"),
    Entry("pixel_clip", "module", "trimtab.gradients:clip_vectors_", "gradient of a feature map bounded pixel by pixel, direction kept", "2310.12474", card="pixel-clip"),
    Entry("route_by_label", "module", "trimtab.gradients:RouteByLabel", "the label of a batch says which parameters learn from it; a part can be cut out", "2512.05648"),
    Entry("tract", "module", "trimtab.gradients:TrAct", "first layer's gradient solved against its inputs: its activations take the step", "2410.23970"),
    Entry("clip_norm", "transform", "trimtab.gradients:ClipNorm", "global norm of the gradient clipped", "1211.5063"),
    Entry("gradual", "after_step", "trimtab.pruning:GradualPruning", "gradual magnitude pruning along training, cubic or linear", "1710.01878", card="gradual-pruning"),
    Entry("progressive", "after_step", "trimtab.pruning:GradualPruning", "progressive magnitude pruning in one cycle: linear, global", "2606.12278", {"power": 1.0, "scope": "global"}, card="gradual-pruning"),
    Entry("ac_dc", "after_step", "trimtab.pruning:ACDC", "sparse and dense phases in turn, ending sparse", "2106.12379"),
    Entry("rigl", "after_step", "trimtab.pruning:DynamicSparse", "sparse from the start: small weights go, those with large gradients come", "1911.11134", {"grow": "gradient"}, card="dynamic-sparse"),
    Entry("set", "after_step", "trimtab.pruning:DynamicSparse", "sparse from the start: small weights go, others come at random", "1707.04780", {"grow": "random"}, card="dynamic-sparse"),
    Entry("nm_decay", "after_step", "trimtab.pruning:NMDecay", "towards N:M: what is masked fades, or the groups tighten", "2402.04744"),
    Entry("sr_ste", "after_step", "trimtab.pruning:NMDecay", "N:M along training, masked weights decayed", "2102.04010", {"method": "sr_ste"}, card="nm-decay"),
    Entry("soft_threshold", "after_step", "trimtab.pruning:SoftThreshold", "a learnt threshold for each layer, below which weights are zero", "2002.03231"),
    Entry("movement", "after_step", "trimtab.pruning:MovementPruning", "what moves towards zero goes, in fine-tuning", "2005.07683", card="movement-pruning"),
    Entry("low_rank", "after_step", "trimtab.pruning:LowRankProjection", "weights projected to low rank now and then; two small layers in the end", "1812.02402"),
    Entry("magnitude_invariant", "module", "trimtab.models.hyper:MagnitudeInvariant", "a network that predicts the weights of another, whatever the size of its input", "2304.07645"),
    Entry("hard_concrete", "module", "trimtab.pruning:HardConcreteGate", "gates on heads and channels, learned to be exactly open or closed, then removed", "1712.01312", card="gates"),
    Entry("mask_tuning", "module", "trimtab.pruning:MaskTuning", "a frozen network learns a task by leaving weights out, one bit each", "2307.15049"),
    Entry("low_precision", "precision", "trimtab.precision:LowPrecision", "gradients, weights, momentum, activations, operands rounded to a number format", "2508.07142"),
    Entry("compensate", "precision", "trimtab.precision:Compensate", "step divided by the running shrinkage of the gradients", "2508.07142"),
    Entry("binarize", "precision", "trimtab.precision:Binarize", "weights, and on demand activations, of one bit; the gradient by ReSTE", "2308.06689"),
    Entry("eight_bit_state", "precision", "trimtab.precision:EightBitState", "the optimizer's moments in a byte each between steps, any optimizer", "2110.02861", card="eight-bit-state"),
    Entry("frozen_codes", "precision", "trimtab.precision:FrozenCodes", "linear layers as whole numbers in bytes, times scales that learn", "2505.13430", card="qzo"),
    Entry("qzo", "precision", "trimtab.precision:QuantizedZeroOrder", "scales of quantised weights trained by two forward passes, no backward pass", "2505.13430"),
    Entry("subspace_history", "precision", "trimtab.precision:SubspaceHistory", "estimated gradients kept to the directions in which weights moved", "2503.14868", card="qzo"),
    Entry("one_shot", "pruning", "trimtab.pruning:one_shot", "exact one-shot pruning: score, scope, pattern", "ours", card="one-shot-pruning"),
    Entry("wanda", "pruning", "trimtab.pruning:Wanda", "score: magnitude times the norm of the weight's input", "2306.11695", card="calibrated-scores"),
    Entry("snip", "pruning", "trimtab.pruning:Snip", "score: |w g|, sensitivity of the loss to a connection", "1810.02340", card="calibrated-scores"),
    Entry("taylor", "pruning", "trimtab.pruning:Taylor", "score: (w g)^2, first-order change of the loss, of weights or channels", "1906.10771", card="calibrated-scores"),
    Entry("grasp", "pruning", "trimtab.pruning:GraSP", "score: w (*) H g, what keeps the gradient flowing", "2002.07376", card="calibrated-scores"),
    Entry("sparse_gpt", "pruning", "trimtab.pruning:sparse_gpt", "layer by layer, the weights that stay making up for those that go", "2301.00774"),
    Entry("owl", "pruning", "trimtab.pruning:owl", "a sparsity for each layer: those with many outliers stay denser", "2310.05175", card="calibrated-scores"),
    Entry("channels", "pruning", "trimtab.deploy:remove_channels", "channels taken out for good: a smaller, faster network", "2301.12900"),
    Entry("depth_plan", "pruning", "trimtab.pruning:depth_plan", "which layers to skip, by dynamic programming over a measure", "2411.10606", card="channels"),
    Entry("recalibrate", "pruning", "trimtab.pruning:recalibrate", "BatchNorm statistics estimated anew after pruning", "1907.07684", card="recalibration"),
    Entry("adaptive", "schedule", "trimtab.curricula:Adaptive", "next stage when the loss has stopped falling", "ours", card="curricula"),
    Entry("released", "schedule", "trimtab.curricula:Released", "the rule of the released code of MedCLM", "2510.04477", card="curricula"),
    Entry("linear", "schedule", "trimtab.curricula:Linear", "shares of the stages on a straight line", "ours", card="curricula"),
    Entry("mixed", "schedule", "trimtab.curricula:Mixed", "all stages at once", "ours", card="curricula"),
    Entry("easy_only", "schedule", "trimtab.curricula:EasyOnly", "the first stage alone", "ours", card="curricula"),
    Entry("hard_only", "schedule", "trimtab.curricula:HardOnly", "the last stage alone", "ours", card="curricula"),
    Entry("reverse", "schedule", "trimtab.curricula:Reverse", "shares of the stages on a straight line, from hard to easy", "ours", card="curricula"),
    Entry("curriculum", "sampler", "trimtab.curricula:CurriculumSampler", "rows drawn by stage, as a scheduler decides", "2510.04477", card="curricula"),
    Entry("batch_coreset", "sampler", "trimtab.curricula:BatchCoreset", "of a large batch the examples whose gradients stand for all", "2407.19580"),
    Entry("variance_sampler", "sampler", "trimtab.curricula:VarianceSampler", "questions drawn by how uncertain and how unlike their tries are", "2509.21268", card="rollout-samplers"),
    Entry("beta_difficulty", "sampler", "trimtab.curricula:BetaDifficultySampler", "questions drawn by Thompson sampling of their pass rate, old evidence fading", "2511.18902", card="rollout-samplers"),
    Entry("pack", "sampler", "trimtab.curricula:pack", "rows of unequal length into few bins, best-fit decreasing", "Johnson 1973", card="packing"),
    Entry("stable_max", "loss", "trimtab.losses:StableMaxCrossEntropy", "cross-entropy with a rational tail: no confident example's gradient becomes zero", "2501.04697", card="stable-max"),
    Entry("z_loss", "loss", "trimtab.losses:ZLossCrossEntropy", "cross-entropy with the logarithm of its denominator held near zero", "2204.02311", card="z-loss"),
    Entry("batch_size", "schedule", "trimtab.curricula:AdaptiveBatchSize", "the batch grows when the gradient is mostly noise", "2402.11215", card="batch-size"),
    Entry("scale_lr", "schedule", "trimtab.optimizers:scale_learning_rate", "the learning rate for another batch size", "2006.09092", card="learning-rates"),
    Entry("lora_plus", "schedule", "trimtab.optimizers:lora_plus_groups", "the second factor of an adapter learns faster than the first", "2402.12354", card="lora-plus"),
    Entry("mup", "schedule", "trimtab.optimizers:mup_groups", "learning rates found on a narrow network, for the same one wider", "2203.03466"),
    Entry("spectral_lr", "schedule", "trimtab.optimizers:learning_rate_from_spectrum", "learning rate and momentum from the ends of the Hessian's spectrum", "2006.09092", card="learning-rates"),
    Entry("align", "loss", "trimtab.losses:align", "a full and a sparse path through a network drawn to each other", "2511.20102"),
    Entry("balance", "loss", "trimtab.losses:balance", "every term of an objective brought to the value of one", "1909.04868", card="loss-weights"),
    Entry("occurrence_weights", "loss", "trimtab.losses:occurrence_weights", "rare targets weigh more, the loss keeps its size", "2601.12863", card="loss-weights"),
    Entry("dynamics_weights", "loss", "trimtab.losses:DynamicsWeights", "losses weighed by how far each stands above its least value", "2601.12863", card="loss-weights"),
    Entry("pcgrad", "combiner", "trimtab.multitask:PCGrad", "each loss gives up what works against the others", "2001.06782"),
    Entry("cagrad", "combiner", "trimtab.multitask:CAGrad", "near the mean gradient, the one that helps the worst-off loss most", "2110.14048"),
    Entry("gcond", "combiner", "trimtab.multitask:GCond", "conflicts settled pair by pair by an arbitrator who remembers", "2509.07252"),
    Entry("similarity_momentum", "combiner", "trimtab.multitask:SimilarityMomentum", "gradients of unlike size made alike, of like size weighed by momentum", "2506.06130"),
    Entry("equal_norm", "combiner", "trimtab.multitask:EqualNorm", "every loss's gradient gets the mean norm", "2308.11928"),
    Entry("gradient_dropout", "combiner", "trimtab.multitask:GradientDropout", "where losses disagree on a sign, one sign is drawn", "2010.06808"),
    Entry("prior_bias", "module", "trimtab.models:prior_bias_", "a classifier begins with the prior of its classes", "1909.04868"),
    Entry("shared_or_own", "module", "trimtab.multitask:SharedOrOwn", "a layer that learns which of its parts all tasks share", "2308.11928"),
    Entry("nearest_neighbours", "worker", "trimtab.workers:NearestNeighbourAverage", "mean of the received models nearest to the own one", "2209.10931", card="robust-exchange"),
    Entry("median", "worker", "trimtab.workers:Median", "median of what workers sent, element by element", "1803.01498", card="robust-exchange"),
    Entry("trimmed_mean", "worker", "trimtab.workers:TrimmedMean", "largest and smallest of each element left out, the mean of the rest", "1803.01498", card="robust-exchange"),
    Entry("krum", "worker", "trimtab.workers:Krum", "the vector whose nearest others lie nearest", "Blanchard 2017", card="robust-exchange"),
    Entry("coding_plan", "worker", "trimtab.workers:coding_plan", "loads and delays of gradient coding over several rounds, and a simulation", "2211.13802", card="gradient-coding"),
    Entry("gradient_difference", "worker", "trimtab.workers:GradientDifference", "private gradients from their clipped differences", "2302.03884"),
    Entry("group_clip", "worker", "trimtab.workers:GroupClip", "private gradients clipped by example and group of parameters", "2507.22565"),
    Entry("span_weights", "loss", "trimtab.curricula:SpanWeights", "cross-entropy weighted by text span", "2510.04477", card="curricula"),
    Entry("u_shaped_timestep", "sampler", "trimtab.schemes:UShapedTimestep", "timesteps drawn more often near the two ends", "2405.20320", card="rectified-flow"),
    Entry("pseudo_huber", "loss", "trimtab.losses:pseudo_huber", "squared near zero, a distance far from it", "2405.20320", card="rectified-flow"),
    Entry("attention_residual", "module", "trimtab.models:AttentionResidual", "a layer's input is a learned mixture of all earlier outputs", "2603.15031"),
    Entry("noprop", "scheme", "trimtab.schemes:NoProp", "blocks learn apart, each to take noise off the label", "2503.24322"),
    Entry("gbnn", "scheme", "trimtab.schemes:GBNNRegressor", "hidden units of one perceptron added stage by stage", "1909.12098"),
    Entry("ppo", "policy_loss", "trimtab.losses.policy:ppo", "clipped surrogate of PPO, clip-higher and dual clip included", "1707.06347", card="policy-losses"),
    Entry("gppo", "policy_loss", "trimtab.losses.policy:gppo", "PPO's value, but clipped tokens keep a bounded gradient", "2508.07629"),
    Entry("drpo", "policy_loss", "trimtab.losses.policy:drpo", "right answers weighed by length among themselves, against the wrong ones", "2510.04474"),
    Entry("group_advantage", "policy_loss", "trimtab.losses.policy:group_advantage", "reward against the group's mean, by its deviation (GRPO)", "2402.03300", card="policy-losses"),
    Entry("batch_advantage", "policy_loss", "trimtab.losses.policy:batch_advantage", "reward against the group's mean, by the batch's deviation; too long is wrong", "2510.15110"),
    Entry("dot_lengths", "policy_loss", "trimtab.losses.policy:dot_lengths", "outliers of length cut in groups that are all right", "2601.03969"),
    Entry("dynamic_dpo", "policy_loss", "trimtab.losses.policy:dynamic_dpo", "DPO over the rejected answers at the boundary, each with its own strength", "2605.00327"),
    Entry("void_turn_mask", "policy_loss", "trimtab.losses.policy:void_turn_mask", "trajectories with a turn without code or answer left out", "2509.02479"),
    Entry("g2rl", "policy_loss", "trimtab.losses.policy:g2rl", "rewards raised for rollouts that move the policy in a direction of their own", "2512.15687"),
    Entry("gradient_tracker", "observer", "trimtab.observe:GradientTracker", "statistics of gradients, weights and updates at every step", "2509.03677"),
    Entry("update_ratio", "observer", "trimtab.observe:UpdateRatio", "length of a step over length of the weights", "ours", card="black-box"),
    Entry("nlm_cosine", "observer", "trimtab.observe:NLMCosine", "how much of a step only makes the weights longer", "2501.04697", card="black-box"),
    Entry("noise_scale", "observer", "trimtab.observe:GradientNoiseScale", "batch size from which on a larger one no longer helps", "1812.06162", card="black-box"),
    Entry("softmax_collapse", "observer", "trimtab.observe:SoftmaxCollapse", "share of examples whose loss is exactly zero in the number format", "2501.04697", card="black-box"),
    Entry("activations", "observer", "trimtab.observe:ActivationStatistics", "largest activations, outlier and silent channels", "2208.07339", card="black-box"),
    Entry("attention", "observer", "trimtab.observe:AttentionStatistics", "greatest attention logit, norms of queries and keys", "2302.05442", card="black-box"),
    Entry("example_scores", "observer", "trimtab.observe:ExampleScores", "difficulty of every training example: EL2N, forgetting, GraNd, VoG, TracIn", "2311.16298"),
    Entry("inflection_probe", "observer", "trimtab.observe:InflectionProbe", "layers where attention is settled and the gradient fades", "2511.00797"),
    Entry("effective_rank", "observer", "trimtab.observe:EffectiveRank", "how many directions each weight matrix uses", "Roy 2007", card="black-box"),
    Entry("task_cosines", "observer", "trimtab.observe:task_cosines", "whether several losses pull the shared weights the same way", "2001.06782", card="task-cosines"),
    Entry("shrinkage_meter", "observer", "trimtab.precision:ShrinkageMeter", "what rounding did to each layer: shrinkage, noise, dead entries", "2508.07142"),
    Entry("weight_distribution", "observer", "trimtab.observe:weight_distribution", "histogram and moments of weight magnitudes", "2511.14282", card="one-shot-pruning"),
    Entry("curvature", "observer", "trimtab.observe.curvature:Hessian", "products with the Hessian: eigenvalues, trace, density, sharpness", "1912.07145"),
    Entry("negativity", "observer", "trimtab.observe.curvature:negativity", "how much of the curvature is negative, from its density", "2412.10146", card="curvature"),
    Entry("landscape", "observer", "trimtab.observe.landscape:section", "loss along filter-normalised directions", "1712.09913"),
    Entry("medclm", "data", "trimtab.medclm.building:build", "detection boxes turned into visual questions with reasoning tied to anatomy", "2510.04477", card="medclm-build"),
)
# fmt: on


def find(name: str) -> Entry:
    """The row of that name.

    Raises:
        ValueError: no such lever; the nearest names are given.

    Example:
        >>> find("cram+").fixed
        {'plus': True}
    """
    base = name.partition("@")[0]
    if base in LEVERS:
        return LEVERS[base]
    raise ValueError(f"unknown lever {name!r}; {hint(base, LEVERS, 'levers')}")


def parse(text: str) -> tuple[str, ...]:
    """The levers of a short form such as `l1+cram+`: split at `+`, and a name that itself ends in `+` keeps its own.

    Raises:
        ValueError: an empty or unknown name, or a bad suffix.

    Example:
        >>> parse("l1+cram+"), parse("cram++var"), parse("cram+var"), parse("l1+l1@head")
        (('l1', 'cram+'), ('cram+', 'var'), ('cram', 'var'), ('l1', 'l1@head'))
    """
    names: list[str] = []
    for word in text.split("+"):
        if word:
            names.append(word)
        elif names and not names[-1].endswith("+"):
            names[-1] += "+"
        else:
            raise ValueError(f"{text!r} holds a + without a name before it")
    return tuple(checked(name) for name in names)


def checked(name: str) -> str:
    """`name` itself when it is a known lever, with or without a suffix such as `@head`; ValueError otherwise."""
    find(name)
    _, at, suffix = name.partition("@")
    if at and not _SUFFIX.fullmatch(suffix):
        raise ValueError(f"the suffix of {name!r} must be of a-z, 0-9 and _, such as {name.partition('@')[0]}@head")
    return name


def settings_name(name: str) -> str:
    """Name of the section that a used lever reads: without its own `+`, with its suffix.

    Example:
        >>> settings_name("cram+"), settings_name("l1@head")
        ('cram', 'l1@head')
    """
    base, at, suffix = name.partition("@")
    return f"{base.rstrip('+')}{at}{suffix}"


def of_home(*homes: Home) -> dict[str, Entry]:
    """The rows of these homes, in the registry's order."""
    return {name: row for name, row in LEVERS.items() if row.home in homes}


def create(name: str, *arguments: Any, **settings: Any) -> Any:
    """The lever of that name with these settings.

    Raises:
        ValueError: an unknown name, or a setting out of range.
        TypeError: a setting that the lever does not take.

    Example:
        >>> create("clip_norm", max_norm=1.0)
        ClipNorm(max_norm=1.0, norm_type=2.0, min_ndim=0)
    """
    row = find(name)
    return row.load()(*arguments, **row.fixed, **settings)
