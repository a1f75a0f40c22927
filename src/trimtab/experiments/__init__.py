"""From a recipe to a run folder to a summary: training, pruning, comparing, tuning."""

from trimtab.experiments.assemble import assemble
from trimtab.experiments.comparison import compare
from trimtab.experiments.methods import METHODS, Method
from trimtab.experiments.prune_run import prune_run
from trimtab.experiments.recipe import Recipe, load_recipe, shipped_recipes
from trimtab.experiments.run_folder import RunFolder
from trimtab.experiments.summary import Row, Summary
from trimtab.experiments.training import train, trained_model
from trimtab.experiments.variants import Variant, variants

__all__ = [
    "METHODS",
    "Method",
    "Recipe",
    "Row",
    "RunFolder",
    "Summary",
    "Variant",
    "assemble",
    "compare",
    "load_recipe",
    "prune_run",
    "shipped_recipes",
    "train",
    "trained_model",
    "variants",
]
