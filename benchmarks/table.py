"""Write the table of bars and last figures from `results/*.json` into this folder's README."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- table begins -->", "<!-- table ends -->"


def figure(value: float) -> str:
    return f"{value:.3g}"


def rows() -> list[str]:
    lines = []
    for file in sorted((FOLDER / "results").glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        for row in content["rows"]:
            bar = str(row["bar"]) if row.get("bar") else "none"
            has_bar = row.get("met") is not None and not bar.startswith("none")
            verdict = ("met" if row["met"] else "**missed**") if has_bar else ""
            question = row["question"].replace("|", "\\|")
            lines.append(f"| {file.stem} | {question} | {figure(row['ratio'])} | {bar} | {verdict} |")
    return lines


def main() -> None:
    readme = FOLDER / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join(["| script | question | ratio | bar | |", "|---|---|---|---|---|", *rows()])
    readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    print(f"{len(rows())} figures written into {readme.name}")


if __name__ == "__main__":
    main()
