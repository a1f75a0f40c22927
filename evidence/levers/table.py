"""The table of docs/evidence/levers.md from the figures beside it.

python evidence/levers/table.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from evidence_page import fill, spread, table
from figures import FOLDER, file_of

from trimtab.studies.statistics import estimate


def difference(name: str, one: str, other: str, digits: int = 2) -> str:
    """Of two figures, by seed: the mean with its 95 % interval."""
    rows = json.loads(file_of(name).read_text(encoding="utf-8"))
    return spread(estimate(row[one] - row[other] for row in rows), digits=digits, signed=True)


def value(name: str, key: str, digits: int = 2) -> str:
    """One figure, over the seeds."""
    rows = json.loads(file_of(name).read_text(encoding="utf-8"))
    return spread(estimate(row[key] for row in rows), digits=digits)


def main() -> None:
    """Fill the page."""
    rows = [
        ["[`gppo`](../methods/gppo.md)", "keeps more entropy than PPO's clipping",
         f"entropy after 30 updates {difference('policy', 'gppo entropy after 30', 'ppo entropy after 30', 3)}, "
         f"at reward 0.9 {difference('policy', 'gppo entropy at 0.9', 'ppo entropy at 0.9')}", "does not"],
        ["[`gppo`](../methods/gppo.md)", "clipped tokens go on teaching",
         f"updates to reward 0.9: {value('policy', 'ppo updates to 0.9', 1)} with PPO, "
         f"{difference('policy', 'gppo updates to 0.9', 'ppo updates to 0.9', 1)} with GPPO", "holds"],
        ["[`dot_lengths`](../methods/dot-lengths.md)", "answers get shorter and stay right",
         f"length {value('policy', 'dot length at first')} to {value('policy', 'dot length at last')}, reward "
         f"{value('policy', 'dot reward at last')}; PPO alone: "
         f"{difference('policy', 'ppo length at last', 'ppo length at first')}",
         "holds"],
        ["[`negativity`](../methods/curvature.md)", "`r_e` falls towards a minimum",
         "; ".join(f"step {step}: {value('landscape', f'ratio {step}', 3)}" for step in (0, 20, 100, 400)), "holds"],
    ]  # fmt: skip
    fill(FOLDER / "levers.md", {"levers": table(["lever", "claim", "figure", "verdict"], rows)})


if __name__ == "__main__":
    main()
