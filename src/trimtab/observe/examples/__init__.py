"""Scores of single training examples: how hard each is, how often it was forgotten, what it does to others."""

from trimtab.observe.examples.formulas import el2n, gradient_variance, influence, within_class
from trimtab.observe.examples.passes import example_gradients, grand, input_gradients, tracin
from trimtab.observe.examples.scores import ExampleScores

__all__ = [
    "ExampleScores",
    "el2n",
    "example_gradients",
    "gradient_variance",
    "grand",
    "influence",
    "input_gradients",
    "tracin",
    "within_class",
]
