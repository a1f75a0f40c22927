"""Prune a causal language model in memory: which of its weights, by which score, with which calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn

from trimtab.checks import below_one, one_of, positive, whole
from trimtab.parameters import PRUNABLE, Entry, Rule, select
from trimtab.pruning import Wanda, one_shot, owl, sparse_gpt
from trimtab.pruning.layer_inputs import reason_against
from trimtab.pruning.layer_sparsity import Sparsity
from trimtab.pruning.patterns import Indivisible, parse_pattern
from trimtab.pruning.pruned import Pruned

LanguageScore = Literal["wanda", "sparse_gpt", "magnitude"]
HEAD = "output layer, left dense as in the published methods (head=True prunes it)"


@dataclass(frozen=True)
class PruneOptions:
    """How a language model is pruned.

    Attributes:
        score: "wanda" (default), "sparse_gpt" or "magnitude" (layer by layer).
        sparsity: fraction of each layer's weights that goes, or one for each layer by name. Default 0.5; None with a pattern.
        pattern: "unstructured", or "N:M" such as "2:4".
        owl: give each block its own share by OWL, with `sparsity` as the mean.
        owl_outlier, owl_spread: of OWL; 5 and 0.08 as published.
        quantize: also round the weights that stay to so many bits (SparseGPT alone, in the same pass).
        damping: of SparseGPT. Default 0.01 (paper).
        head: also prune the output layer (and a layer before it that is of the head alone, as BERT has one), where it is no
            weight of the embedding. Default False (as published).
        exclude: shell patterns of weights that stay dense.
        indivisible: "refuse" or "leave_out": what becomes of weights that an N:M pattern does not divide.

    Raises:
        ValueError: a value out of range, or two that contradict each other.
    """

    score: LanguageScore = "wanda"
    sparsity: Sparsity | None = None
    pattern: str = "unstructured"
    owl: bool = False
    owl_outlier: float = 5.0
    owl_spread: float = 0.08
    quantize: int | None = None
    damping: float = 0.01
    head: bool = False
    exclude: tuple[str, ...] = ()
    indivisible: Indivisible = "refuse"

    def __post_init__(self) -> None:
        one_of("score", self.score, ("wanda", "sparse_gpt", "magnitude"))
        one_of("indivisible", self.indivisible, ("refuse", "leave_out"))
        groups = parse_pattern(self.pattern)
        if self.sparsity is None and groups is None:
            object.__setattr__(self, "sparsity", 0.5)
        if isinstance(self.sparsity, float | int):
            below_one("sparsity", self.sparsity)
        if positive("damping", self.damping) != 0.01 and self.score != "sparse_gpt":
            raise ValueError(
                f"damping={self.damping:g} is of SparseGPT; give score sparse_gpt with it, not {self.score}"
            )
        if self.quantize is not None:
            whole("quantize", self.quantize, 1, 16)
            if self.score != "sparse_gpt":
                raise ValueError(
                    f"quantize={self.quantize} rounds in the pass of SparseGPT; give score sparse_gpt with it, not {self.score}"
                )
        if self.owl and (groups is not None or isinstance(self.sparsity, Mapping)):
            given = f"pattern {self.pattern!r}" if groups is not None else "a sparsity by name"
            raise ValueError(f"owl chooses the sparsity of each block, and {given} fixes it; leave one of them out")

    @property
    def needs_data(self) -> bool:
        """Whether calibration data are looked at."""
        return self.score != "magnitude" or self.owl


def _hidden(model: nn.Module, batch: Any) -> object:
    """Run the layers without the output layer, whose scores for every word would be the most memory of all."""
    inner: Any = model
    return inner.base_model(input_ids=batch, use_cache=False)


def _whole(model: nn.Module, batch: Any) -> object:
    return model(input_ids=batch, use_cache=False)


def chosen_weights(model: nn.Module, options: PruneOptions) -> tuple[list[str], list[tuple[Entry, str]]]:
    """Names of the weights that are pruned, and every other matrix with the reason why not.

    Raises:
        ValueError: none is left, or a pattern of `exclude` matches nothing.
    """
    selection = select(model, replace(PRUNABLE, frozen=True))
    for pattern in options.exclude:
        if not any(fnmatchcase(entry.name, pattern) for entry in selection.chosen):
            raise ValueError(
                f"exclude {pattern!r} matches none of the {len(selection.chosen)} weights, such as {selection.chosen[0].name}"
            )
    find: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = getattr(find(), "weight", None)
    inner: Any = getattr(model, "base_model", model)
    inside = {id(parameter) for parameter in inner.parameters()}
    names: list[str] = []
    left_out = [(entry, reason) for entry, reason in selection.left_out if entry.parameter.ndim > 1]
    for entry in selection.chosen:
        reason = reason_against(entry)
        outside = entry.parameter is head or id(entry.parameter) not in inside
        if reason is None and outside and not options.head:
            reason = HEAD
        if any(fnmatchcase(entry.name, pattern) for pattern in options.exclude):
            reason = "excluded"
        if reason is None:
            names.append(entry.name)
        else:
            left_out.append((entry, reason))
    if not names:
        reasons = "; ".join(f"{entry.name}: {reason}" for entry, reason in left_out[-3:])
        raise ValueError(f"{type(model).__name__} has no weights of linear layers to prune ({reasons})")
    return names, left_out


def prune_language_model(
    model: nn.Module, calibration: Sequence[Tensor] = (), options: PruneOptions | None = None
) -> tuple[Pruned, dict[str, float]]:
    """Prune the linear layers of a causal language model in place.

    Embeddings, and an output layer that shares their matrix or not, stay dense, as in the published methods.

    Args:
        model: a causal language model of transformers.
        calibration: token numbers, each (batch, length), as `sequences` draws them; magnitude needs none.
        options: how; default Wanda at 50 %.

    Returns:
        What was done (`undo()` puts it back) and, with OWL, the sparsity of each weight.

    Raises:
        ValueError: no calibration data where they are needed, data that never reach a layer (named), a pattern that does not
            divide one, nothing to prune. The model is as it was then.

    Reference:
        arXiv 2306.11695 (Wanda), 2301.00774 (SparseGPT), 2310.05175 (OWL).
    """
    options = options or PruneOptions()
    if options.needs_data and not calibration:
        raise ValueError(f"{'owl' if options.owl else options.score} needs calibration data: give a text")
    names, left_out = chosen_weights(model, options)
    rule = Rule(include=tuple(names), frozen=True)
    forward = _whole if options.head else _hidden
    shares: dict[str, float] = {}
    sparsity = options.sparsity
    if options.owl:
        assert isinstance(sparsity, float | int)
        sparsity = shares = owl(
            model,
            calibration,
            float(sparsity),
            outlier=options.owl_outlier,
            spread=options.owl_spread,
            rule=rule,
            forward=forward,
        )
    if options.score == "sparse_gpt":
        pruned = sparse_gpt(
            model,
            calibration,
            sparsity,
            pattern=options.pattern,
            damping=options.damping,
            quantize=options.quantize,
            rule=rule,
            indivisible=options.indivisible,
            forward=forward,
        )
    else:
        wanda = options.score == "wanda"
        pruned = one_shot(
            model,
            sparsity,
            score=Wanda(calibration, forward=forward) if wanda else "magnitude",
            scope="row" if wanda else "layer",
            pattern=options.pattern,
            rule=rule,
            indivisible=options.indivisible,
        )
    told = {id(entry.parameter) for entry, _ in left_out}
    pruned.left_out[:] = [
        *left_out,
        *(
            (entry, reason)
            for entry, reason in pruned.left_out
            if id(entry.parameter) not in told and entry.parameter.ndim > 1
        ),
    ]
    return pruned, shares
