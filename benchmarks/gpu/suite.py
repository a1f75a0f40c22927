"""Part 1, the CUDA half of the test suite: `pytest tests/cuda`, one row per test that did not pass, one with the counts."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from part import REPOSITORY, Part, start


class Outcomes:
    """Plugin: writes what failed or was skipped as it happens, and stops before the time is up."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test counts by its call, or by its setup when that did not pass."""
        if report.when != "call" and report.outcome == "passed":
            return
        outcome = report.outcome if report.when == "call" or report.outcome == "skipped" else "errors"
        self.counts[outcome] += 1
        name = report.nodeid.removeprefix("tests/cuda/")
        if outcome == "skipped":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.part.row(name, skipped=reason.removeprefix("Skipped: "))
        elif outcome != "passed":
            self.part.row(
                name, error=str(report.longrepr).strip().splitlines()[-1][:500], text=report.longreprtext[-4000:]
            )

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A stop in time leaves the counts."""
        if self.part.left < 3:
            import pytest

            pytest.exit("time was up", returncode=0)


def main(part: Part) -> None:
    """The tests marked `cuda`; in a dry run on the CPU."""
    import pytest

    os.environ["TRIMTAB_TEST_DEVICE"] = "cpu" if part.dry else "cuda"
    os.chdir(REPOSITORY)
    outcomes = Outcomes(part)
    arguments = ["tests/cuda", "-m", "cuda", "-p", "no:cacheprovider", "--no-header", "--tb=short", "-W", "ignore"]
    code = int(pytest.main([*arguments, f"--basetemp={part.folder / 'scratch'}"], plugins=[outcomes]))
    part.row(
        "tests passed",
        outcomes.counts["passed"],
        None,
        **{key: outcomes.counts[key] for key in ("failed", "errors", "skipped")},
    )
    if code not in (0, 1):
        part.row("the test run", error=f"pytest ended with {pytest.ExitCode(code)!r}")
    elif not outcomes.counts:
        part.row("the test run", error="no test was found")


if __name__ == "__main__":
    start("suite", main)
