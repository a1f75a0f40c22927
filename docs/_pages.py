"""Pages that are made and not written: the API's rooms, the commands, the changelog; and the navigation's folders."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent / "src")]

import _commands

ROOT = DOCS.parent
SOURCES = ROOT / "src" / "trimtab"
FROM_THE_ROOT = {"changes.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md"}


def rooms() -> dict[str, tuple[str, list[str]]]:
    """Every package with public names: its first docstring line and the names, as `__init__.py` writes them."""
    found: dict[str, tuple[str, list[str]]] = {}
    for file in sorted(SOURCES.rglob("__init__.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        name = ".".join(file.parent.relative_to(SOURCES.parent).parts)
        for node in tree.body:
            if isinstance(node, ast.Assign) and any(
                isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets
            ):
                found[name] = (ast.get_docstring(tree) or "", list(ast.literal_eval(node.value)))
    return found


def room_page(name: str) -> str:
    """The source of one room's page: mkdocstrings fills it from the docstrings."""
    says, names = rooms()[name]
    if name == "trimtab":  # its other names are the rooms
        names = [one for one in names if f"trimtab.{one}" not in rooms() and one not in {"runs"}]
    blocks = "\n".join(f"::: {name}.{one}" for one in names)
    return f"# {name}\n\n{says}\n\n{blocks}\n"


def title(file: Path) -> str:
    """A page's first heading, without a number before it."""
    heading = next(line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return re.sub(r"^\d+[.:]? +", "", heading.removeprefix("# ").replace("`", "")).strip()


def folder(name: str) -> list[dict[str, str]]:
    """The navigation of a folder: its pages by file name, each by its heading."""
    return [{title(file): f"{name}/{file.name}"} for file in sorted((DOCS / name).glob("*.md"))]


def _fill(items: list[Any], contents: dict[str, Any]) -> None:
    for item in items:
        if isinstance(item, dict):
            for name, held in item.items():
                if held == [] and name in contents:
                    item[name] = contents[name]
                elif isinstance(held, list):
                    _fill(held, contents)


def version() -> str:
    """As the package says."""
    said = re.search(r'^__version__ = "(.*)"', (SOURCES / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert said is not None
    return said[1]


def on_config(config: Any) -> Any:
    """Fill the navigation's open places and say the version under every page."""
    api = [{name: f"reference/api/{name}.md"} for name in rooms()]
    _fill(config["nav"], {"Decisions": folder("decisions"), "Evidence": folder("evidence"), "API": api})
    config["copyright"] = f"Trimtab {version()}, Apache-2.0"
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that no file holds."""
    made = {f"reference/api/{name}.md": room_page(name) for name in rooms()}
    made["reference/commands.md"] = _commands.page()
    for page, source in FROM_THE_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        made[page] = re.sub(r"\]\((?:docs/|\./)", "](", text)
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_content(html: str, **rest: Any) -> str:
    """`[ours]` says what it means when pointed at."""
    parts = re.split(r"(<pre.*?</pre>|<code.*?</code>)", html, flags=re.DOTALL)
    mark = '<abbr title="decided by us where the source is silent or ambiguous">[ours]</abbr>'
    return "".join(part if at % 2 else part.replace("[ours]", mark) for at, part in enumerate(parts))
