"""From a recipe to a run folder to a summary: training, pruning, comparing, tuning."""

from trimtab.runs.loading import trained_model
from trimtab.runs.recipe import Recipe, load_recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.shipped import shipped_recipes
from trimtab.runs.training import train
from trimtab.studies.comparison import compare
from trimtab.studies.contrasts import Contrast, judge
from trimtab.studies.prune_run import prune_run
from trimtab.studies.sharing import pull, push
from trimtab.studies.summary import Row, Summary
from trimtab.studies.variants import Variant, variants
from trimtab.studies.weights.assemble import assemble

__all__ = [
    "Contrast",
    "Recipe",
    "Row",
    "RunFolder",
    "Summary",
    "Variant",
    "assemble",
    "compare",
    "judge",
    "load_recipe",
    "prune_run",
    "pull",
    "push",
    "shipped_recipes",
    "train",
    "trained_model",
    "variants",
]
