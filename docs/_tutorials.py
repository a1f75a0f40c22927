"""Tutorials: run when the site is built, their output put under each block, each also a notebook. One source, the page.

python docs/_tutorials.py NAME FOLDER     # runs docs/tutorials/NAME.md in FOLDER and leaves outputs.json there

A page's blocks of `python` share one interpreter, those of `sh` are commands; both work in one folder. A page links a file
that it made as `made/NAME/PATH`. What a page printed is kept in `.cache/tutorials` until the page or the sources change.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
TUTORIALS = DOCS / "tutorials"
CACHE = DOCS.parent / ".cache" / "tutorials"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
RUN = ("python", "sh")
LOOSE = re.compile(r"\x1b\[[0-9;]*m")


def parts(text: str) -> Iterator[tuple[str, str]]:
    """The page in order: (language, content) of each block that runs, ("", markdown) between them."""
    end = 0
    for found in FENCE.finditer(text):
        if found[1] in RUN:
            yield "", text[end : found.start()]
            yield found[1], found[2]
            end = found.end()
    yield "", text[end:]


def run(name: str, folder: Path) -> list[str]:
    """Run a page's blocks in `folder`; what each printed. A block that fails is an error."""
    names: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    os.chdir(folder)
    for number, (kind, content) in enumerate(
        part for part in parts((TUTORIALS / f"{name}.md").read_text("utf-8")) if part[0]
    ):
        if kind == "python":
            said = io.StringIO()
            with redirect_stdout(said):
                exec(compile(content, f"{name}, block {number + 1}", "exec"), names)
            outputs.append(said.getvalue())
        else:
            done = subprocess.run(["bash", "-e"], input=content, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name}, block {number + 1}: {content}\n{done.stdout}\n{done.stderr}")
            outputs.append(done.stdout)
    return [LOOSE.sub("", said).rstrip() for said in outputs]


def _key(name: str) -> str:
    held = hashlib.sha256((TUTORIALS / f"{name}.md").read_bytes() + Path(__file__).read_bytes())
    for file in sorted((DOCS.parent / "src").rglob("*")):
        if file.suffix in {".py", ".yaml", ".html", ".css", ".js"}:
            held.update(file.read_bytes())
    return held.hexdigest()[:16]


@functools.cache
def result(name: str) -> tuple[list[str], Path]:
    """What the page's blocks print and the folder of what they made; run in a process of its own if it is not kept."""
    folder = CACHE / f"{name}-{_key(name)}"
    kept = folder / "outputs.json"
    if not kept.is_file():
        for old in CACHE.glob(f"{name}-*"):
            shutil.rmtree(old)
        folder.mkdir(parents=True)
        bin_, sources = str(Path(sys.executable).parent), str(DOCS.parent / "src")
        settings = {
            "COLUMNS": "88",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "MPLBACKEND": "agg",
            "TOKENIZERS_PARALLELISM": "false",
        }
        settings |= {"PATH": bin_ + os.pathsep + os.environ["PATH"], "PYTHONPATH": sources}
        command = [sys.executable, __file__, name, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings}, check=False)
        if done.returncode:
            raise RuntimeError(f"the tutorial {name} does not run:\n{done.stdout}\n{done.stderr}")
    return json.loads(kept.read_text("utf-8")), folder


def notebook(name: str) -> str:
    """The page as a Jupyter notebook without outputs; commands of a shell begin with `!`."""
    import nbformat
    from nbformat import v4

    cells = []
    for number, (kind, content) in enumerate(parts((TUTORIALS / f"{name}.md").read_text("utf-8"))):
        text = content.strip("\n")
        if kind == "sh":
            text = "\n".join(f"!{line}" for line in text.replace("\\\n", " ").splitlines())
        if text:
            cell = v4.new_code_cell(text) if kind else v4.new_markdown_cell(text)
            cell["id"] = f"cell-{number}"  # the same at each build
            cells.append(cell)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made = v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.validate(made)
    return nbformat.writes(made)


def pages() -> list[str]:
    """Names of the tutorials."""
    return sorted(file.stem for file in TUTORIALS.glob("*.md"))


def on_files(files: Any, config: Any) -> Any:
    """Add each tutorial's notebook and what its page links of what it made."""
    from mkdocs.structure.files import File

    for name in pages():
        files.append(File.generated(config, f"tutorials/{name}.ipynb", content=notebook(name)))
        _, folder = result(name)
        for path in set(re.findall(rf"\]\(made/{name}/([^)#]+)", (TUTORIALS / f"{name}.md").read_text("utf-8"))):
            files.append(File.generated(config, f"tutorials/made/{name}/{path}", content=(folder / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **rest: Any) -> str:
    """Put under each block what it printed, and the notebook under the heading."""
    name = page.file.src_uri.removeprefix("tutorials/").removesuffix(".md")
    if not page.file.src_uri.startswith("tutorials/") or name not in pages():
        return markdown
    outputs, made = iter(result(name)[0]), []
    for kind, content in parts(markdown):
        if not kind:
            made.append(content)
            continue
        made.append(f"```{kind}\n{content}```\n")
        if said := next(outputs):
            made.append(f'\n<div class="said" markdown>\n\n```text\n{said}\n```\n\n</div>\n')
    head, line, rest_of_page = "".join(made).partition("\n")
    return f"{head}{line}\n[As a notebook]({name}.ipynb){{ .notebook download }}\n{rest_of_page}"


if __name__ == "__main__":
    place = Path(sys.argv[2]).resolve()
    (place / "outputs.json").write_text(json.dumps(run(sys.argv[1], place)), encoding="utf-8")
