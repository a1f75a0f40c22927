"""The model card of a shared run: what it is, what was measured, how to load it; as the Hugging Face Hub reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from trimtab.runs.metric import Metric
from trimtab.runs.recipe import Recipe
from trimtab.studies.statistics import main_rows, sparsity_label
from trimtab.studies.summary import Row

CARD = """---
{head}---

# {title}

A network trained with Trimtab{pruned}: `{model}` on `{data}`, method `{method}`, seed {seed}.
{files}
## Load it

```python
import trimtab

{load}
```
{results}
## Repeat it

With Trimtab {version}: `trimtab pull` this folder as RUN, then `trimtab train RUN/recipe.yaml --out again`. On the same machine
with the same number of threads the same bits come out. Where the data lie is your own (`--data.root DIR`).

<details><summary>recipe.yaml</summary>

```yaml
{recipe}```

</details>

## Limits

One seed of one network: figures without an interval say little about the method. A sparse file is small on disk; loaded into
dense layers the network takes as much memory and time as before. The card was written by `trimtab push`; who shares the network
answers for its data.
"""


@dataclass(frozen=True)
class Shared:
    """What a card speaks of: recipe without its data's place, arguments of the network, pruning rows, sparse file, version."""

    recipe: Recipe
    network: dict[str, Any]
    rows: Sequence[Row]
    sparse_file: str | None
    sparsity: float
    version: str
    licence: str | None


def _results(rows: Sequence[Row], metric: Metric) -> str:
    """A table of the rows by sparsity, as pruned and recalibrated; a sentence where nothing was measured."""
    main = main_rows(rows)
    if not main:
        return "\nNot measured yet: `trimtab prune RUN` does.\n"
    found: dict[float, dict[bool, str]] = {}
    for row in main:
        value: float | None = getattr(row, metric.column)
        found.setdefault(row.sparsity, {})[row.recalibrated] = "" if value is None else metric.number(value, more=1)
    lower = ", lower is better," if metric.lower else ""
    lines = [
        f"\n## Measured\n\n{metric.headed}{lower} on the {main[0].split} split.\n",
        "| sparsity | as pruned | recalibrated |",
        "| --- | ---: | ---: |",
    ]
    lines += [
        f"| {sparsity_label(sparsity)} | {pair.get(False, '')} | {pair.get(True, '')} |"
        for sparsity, pair in sorted(found.items())
    ]
    return "\n".join(lines) + "\n"


def _index(shared: Shared, metric: Metric, title: str) -> list[dict[str, Any]]:
    """The Hub's list of results: the dense network's, and the one at the shared sparsity."""
    measured = []
    for row in main_rows(shared.rows):
        same = abs(row.sparsity - shared.sparsity) < 1e-3
        value: float | None = getattr(row, metric.column)
        if value is None:
            continue
        if (row.sparsity == 0 and not row.recalibrated) or (same and row.recalibrated and row.sparsity > 0):
            name = f"{metric.title}, {sparsity_label(row.sparsity)}"
            measured.append({"type": metric.name, "name": name, "value": round(value, 6)})
    if not measured:
        return []
    data = shared.recipe.data.name
    result = {"task": {"type": metric.kind}, "dataset": {"type": data, "name": data}, "metrics": measured}
    return [{"name": title, "results": [result]}]


def model_card(shared: Shared, metric: Metric) -> str:
    """The text of `README.md`."""
    recipe = shared.recipe
    title = f"{recipe.name}, {recipe.method}"
    if shared.sparse_file is not None:
        title += f", {sparsity_label(shared.sparsity)} sparse"
    head: dict[str, Any] = {} if shared.licence is None else {"license": shared.licence}
    head |= {
        "library_name": "trimtab",
        "pipeline_tag": metric.kind,
        "tags": ["pytorch", "trimtab", *(["pruning", "sparsity"] if shared.sparse_file is not None else [])],
        "datasets": [recipe.data.name],
        "metrics": [metric.name],
    }
    if index := _index(shared, metric, title):
        head["model-index"] = index
    arguments = ", ".join(f"{name}={value!r}" for name, value in shared.network.items())
    load = f"network = trimtab.models.create({arguments})\n"
    load += (
        'from safetensors.torch import load_file\n\nnetwork.load_state_dict(load_file("model.safetensors"))'
        if shared.sparse_file is None
        else f'trimtab.deploy.load_sparse("{shared.sparse_file}", network)'
    )
    sparse = (
        f"* `{shared.sparse_file}`: the pruned network, every zero left out; `trimtab.deploy.load_sparse` reads it\n"
    )
    return CARD.format(
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True),
        title=title,
        pruned="" if shared.sparse_file is None else " and pruned once, without training afterwards",
        model=recipe.model.name,
        data=recipe.data.name,
        method=recipe.method,
        seed=recipe.seed,
        files="\n* `model.safetensors`: the dense network, an ordinary state dict\n"
        + (sparse if shared.sparse_file else ""),
        load=load + "\nnetwork.eval()",
        results=_results(shared.rows, metric),
        version=shared.version,
        recipe=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
