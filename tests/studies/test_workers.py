"""Studies by processes and on a Ray cluster: the same summary, also when a machine is lost in the midst; clear errors."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.runs.tiny import tiny_recipe
from trimtab.cli import main
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.comparison import Standing, compare, run_folders
from trimtab.studies.variants import Variant, variants
from trimtab.studies.weights.assemble import assemble
from trimtab.studies.workers import Processes, _on_ray, workers


def closed_port() -> int:
    """A port of this machine at which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def a_study(epochs: int = 2) -> list[Variant]:
    return variants(tiny_recipe(epochs=epochs), ["sgd", "l1"], [0, 1])


def test_an_address_that_does_not_answer_is_one_error_at_once_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{closed_port()}"
    with pytest.raises(ValueError, match=rf"no Ray cluster answers at {address} \(.+\); start one with"):
        compare(a_study(), tmp_path / "study", launcher="ray", address=address)
    assert not (tmp_path / "study").exists()
    words = [
        "compare",
        "digits",
        "--launcher",
        "ray",
        "--address",
        address,
        "--out",
        str(tmp_path / "study"),
        "--quiet",
    ]
    assert main(words) == 2
    assert f"no Ray cluster answers at {address}" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("address", ["nowhere", "host:", ":6379", "host:99999", "ray://host"])
def test_what_is_no_address_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"is HOST:PORT, auto or local, got '{address}'"):
        compare(a_study(), tmp_path / "study", launcher="ray", address=address)


def test_other_wrong_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="address 'a:1' is of a Ray cluster; give launcher ray"):
        workers("processes", 1, None, tmp_path, "a:1")
    with pytest.raises(ValueError, match="launcher"):
        workers("threads", 1, None, tmp_path)
    with pytest.raises(ValueError, match="jobs"):
        workers("processes", 0, None, tmp_path)
    team = workers("processes", 3, 1, tmp_path)
    assert isinstance(team, Processes)
    assert team.side_by_side == 3
    team.close()


def test_a_machine_that_does_not_see_the_folder_or_has_another_version_says_so(tmp_path: Path) -> None:
    from importlib.metadata import version

    held, error = _on_ray(lambda: None, str(tmp_path / "not-shared"), version("trimtab"), 1, "any")
    assert not held
    assert error is not None
    assert "does not see" in error
    assert "that all of them share" in error
    _, error = _on_ray(lambda: None, str(tmp_path), "0.0.0", 1, "any")
    assert error is not None
    assert "the study was begun with 0.0.0" in error


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_study_on_two_nodes_ends_as_by_processes_though_one_is_killed_in_the_midst(tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    killed = False

    def kill(standing: Standing) -> None:
        """The second node, once both are seen at work; on a machine too busy to show it, once the first run has ended."""
        nonlocal killed
        if not killed and (len(standing.active) == 2 or standing.ended):
            killed = True
            cluster.remove_node(node, allow_graceful=False)

    try:
        ray.init(address=cluster.address, log_to_driver=False)
        outcomes = compare(a_study(40), tmp_path / "ray", launcher="ray", address=cluster.address, report=kill)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed
    assert [outcome.error for outcome in outcomes] == [None] * 4
    compare(a_study(40), tmp_path / "here", jobs=2, threads=1)

    def facts(folder: Path) -> dict[str, Any]:
        summary = assemble(run_folders(folder), folder).model_dump(mode="json")
        times = ("created", "train_seconds", "step_seconds", "hardware", "versions")
        kept = {name: value for name, value in summary.items() if name not in times}
        kept["runs"] = [{name: value for name, value in run.items() if name not in times} for run in kept["runs"]]
        return kept

    assert facts(tmp_path / "ray") == facts(tmp_path / "here")
    assert all(RunFolder(run.path).finished for run in run_folders(tmp_path / "ray"))
