"""docs/systems.md from docs/systems.yaml and the registry.

python docs/_systems.py           # writes the page; a test fails while it is behind
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
HEAD = """# Systems: what is here, what is planned, what is no lever

{count} methods of the literature, one row each, found by title or arXiv number with the search above or the browser's.
**Here** is what runs today, with its card, its command and what we found; **in part** where pieces are still to come;
**planned** with the room it will stand in ([architecture](architecture.md)); **no lever** with the reason. {states}.

The list is [`systems.yaml`](systems.yaml), the page is made from it and the registry by `python docs/_systems.py`.
Levers that come from elsewhere (SAM, CrAM, L1, ...) stand in [the table of levers](levers.md).

| nr | system | arXiv | what it does | state | where, or why not |
| ---: | --- | --- | --- | --- | --- |
"""


def registry() -> Any:
    """The registry by its file, so that neither torch nor an installed package is needed."""
    name = "trimtab_registry"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER.parent / "src" / "trimtab" / "registry.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def systems() -> list[dict[str, Any]]:
    """The rows of the list."""
    found: list[dict[str, Any]] = yaml.safe_load((FOLDER / "systems.yaml").read_text(encoding="utf-8"))
    return found


def state(row: dict[str, Any]) -> str:
    """`here`, `in part`, `planned` or `no lever`."""
    if row.get("levers"):
        return "in part" if row.get("planned") else "here"
    return "planned" if row.get("planned") else "no lever"


def _command(row: dict[str, Any]) -> str:
    """What runs it: the row's own command, or a training run with its first lever."""
    return row.get("command") or f"trimtab train RECIPE --levers {row['levers'][0]}"


def where(row: dict[str, Any]) -> str:
    """The last cell: levers with their homes and cards, command, verdict; what is planned; or the reason."""
    levers, parts = registry().LEVERS, []
    if row.get("levers"):
        cards = [f"[`{name}`]({levers[name].card_file})" for name in row["levers"]]
        homes = dict.fromkeys(levers[name].home.replace("_", " ") for name in row["levers"])
        parts.append(f"{', '.join(homes)}: {', '.join(cards)}; `{_command(row)}`")
        verdict = row.get("verdict")
        parts.append(f"{verdict} ([evidence](evidence/{row['evidence']}))" if verdict else "not measured yet")
    if row.get("planned"):
        parts.append(f"planned: {row['planned']}" if parts else row["planned"])
    return "<br>".join([*parts, *([row["not_a_lever"]] if row.get("not_a_lever") else [])])


def page() -> str:
    """The whole page."""
    rows = systems()
    states = [state(row) for row in rows]
    counts = ", ".join(f"{states.count(name)} {name}" for name in ("here", "in part", "planned", "no lever"))
    lines = []
    for row in rows:
        paper = f"<br>*{row['paper']}*" if row.get("paper") else ""
        number = f"[{row['arxiv']}](https://arxiv.org/abs/{row['arxiv']})" if row.get("arxiv") else ""
        cells = [str(row["nr"]), f"**{row['title']}**{paper}", number, row["line"], state(row), where(row)]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return HEAD.format(count=len(rows), states=f"Today: {counts}") + "\n".join(lines) + "\n"


if __name__ == "__main__":
    (FOLDER / "systems.md").write_text(page(), encoding="utf-8")
