"""The viewer's page as text: which scripts may run."""

from __future__ import annotations

import re
from pathlib import Path

from trimtab.report.medclm.viewer import Shown, write_viewer


def _page(folder: Path, text: str) -> str:
    row = Shown("a.png", 4, 4, None, None, text, text, text, {"class": text}, {"x": text})
    return write_viewer(folder / "view.html", [row], title="t").read_text()


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    page = _page(tmp_path, "</script><script>alert(1)</script><img src=x onerror=alert(1)>")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    assert policy is not None
    assert page.index(policy.group()) < page.index("<script")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.group(1).split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in rules["script-src"]
    nonce = re.search(r"'nonce-(\w+)'", rules["script-src"])
    assert nonce is not None
    assert len(nonce.group(1)) == 32
    assert re.findall(r"<script(?! type=.application/json.)[^>]*>", page) == [f'<script nonce="{nonce.group(1)}">']
    assert _page(tmp_path, "other").count(nonce.group(1)) == 0
    assert _page(tmp_path, "</script><script>alert(1)</script><img src=x onerror=alert(1)>") == page
