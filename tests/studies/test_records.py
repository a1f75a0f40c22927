"""What is left of a run in its record is enough to go on and to report; what does not fit is refused before anything runs."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.here_and_now import in_this_process
from tests.runs.tiny import tiny_recipe
from trimtab.files import HeldError
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.comparison import compare, run_folders
from trimtab.studies.plan import planned_runs
from trimtab.studies.records import LIMIT, WORKING, Records, RunRecord, record_of
from trimtab.studies.variants import Variant, variants
from trimtab.studies.weights.assemble import assemble

pytestmark = pytest.mark.usefixtures("here_and_now")
SPLITS = ("validation", "test")


def wanted(**settings: Any) -> list[Variant]:
    recipe = tiny_recipe(epochs=1, track=("gradients",), track_every=1, data__root="/nowhere", **settings)
    return variants(recipe, ["sgd", "var"], [0, 1])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study in `study`, its records in `records`."""
    folder = tmp_path_factory.mktemp("recorded")
    with in_this_process():
        outcomes = compare(wanted(), folder / "study", splits=SPLITS, records=folder / "records")
    assert [outcome.error for outcome in outcomes] == [None] * 4
    return folder


def facts(summary: Any) -> dict[str, Any]:
    return summary.model_dump(mode="json", exclude={"created"})  # type: ignore[no-any-return]


@pytest.mark.parametrize("split", SPLITS)
def test_records_alone_give_the_summary_of_the_run_folders(study: Path, split: Any) -> None:
    root = study / "study"
    whole = assemble(run_folders(root / "runs"), root, split=split)
    alone = assemble([], root, split=split, records=Records(study / "records").under(root))
    some = assemble(run_folders(root / "runs/var"), root, split=split, records=Records(study / "records").under(root))
    assert len(whole.rows) == 4 * 2 * 3
    assert len(whole.dynamics) == 4
    assert facts(whole) == facts(alone) == facts(some)


def test_a_fresh_checkout_trains_nothing_and_needs_no_data(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study / "records", tmp_path / "records")
    shutil.rmtree(tmp_path / "records" / WORKING)
    outcomes = compare(wanted(), tmp_path / "fresh", splits=SPLITS, records=tmp_path / "records")
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert not (tmp_path / "fresh/runs").exists()
    summary = assemble(
        [], tmp_path / "fresh", planned=planned_runs(tmp_path / "fresh"),
        records=Records(tmp_path / "records").under(tmp_path / "fresh"),
    )  # fmt: skip
    assert summary.missing == []
    assert facts(summary) == facts(assemble(run_folders(study / "study"), study / "study"))


def test_only_what_has_no_record_is_run(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study / "records", tmp_path / "records")
    (tmp_path / "records/var/seed1.json").unlink()
    compare(wanted(), tmp_path / "again", splits=SPLITS, records=tmp_path / "records")
    assert [run.path.relative_to(tmp_path / "again") for run in run_folders(tmp_path / "again")] == [
        Path("runs/var/seed1")
    ]
    first, second = (RunRecord.read(place / "records/var/seed1.json") for place in (study, tmp_path))
    assert second.measured == first.measured
    assert second.metrics == first.metrics


def test_a_record_is_small_and_names_no_place(study: Path) -> None:
    for file in Records(study / "records").files:
        assert file.stat().st_size < LIMIT
        assert "/nowhere" not in file.read_text()
        assert RunRecord.read(file).info["versions"]["torch"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"label_smoothing": 0.1}, r"the record of another run \(label_smoothing: 0.0 there, 0.1 now\)"),
        ({"pruning.sparsities": (0.5,)}, r"other pruning settings \(sparsities: \[0.5, 0.9\] there, \[0.5\] now\)"),
    ],
)  # fmt: skip
def test_a_record_of_another_recipe_is_refused_before_anything_runs(
    study: Path, tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        compare(wanted(**settings), tmp_path / "out", splits=SPLITS, records=study / "records")
    assert not (tmp_path / "out").exists()


def test_what_decides_no_network_may_differ(study: Path) -> None:
    (variant, *_) = wanted(name="other", checkpoint_every=7)
    assert Records(study / "records").done(variant, SPLITS) is not None


def test_a_record_without_a_split_is_not_done(study: Path, tmp_path: Path) -> None:
    (variant, *_) = wanted()
    records = Records(tmp_path)
    whole = RunRecord.read(study / "records/sgd/seed0.json")
    records.write(variant, whole.model_copy(update={"measured": {"validation": whole.measured["validation"]}}))
    assert records.done(variant, ("validation",)) is not None
    assert records.done(variant, SPLITS) is None


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "Invalid JSON"),
        (lambda text: text.replace("trimtab.run/1", "trimtab.run/9"), "schema: Input should be 'trimtab.run/1'"),
        (lambda text: text.replace('"finished"', '"interrupted"'), "info.status must be 'finished', got 'interrupted'"),
        (lambda text: text.replace('"accuracy"', '"accuracie"'), r"measured.*accuracy: Field required"),
        (lambda text: text.replace('"step_seconds"', '"step_second"'), "info lacks step_seconds"),
        (lambda text: text.replace('"epochs": 1, "optimizer"', '"epochs": -1, "optimizer"'), "recipe: epochs: "),
        (lambda text: text.replace('"label": "sgd"', '"label": "var"', 1), r"measured.validation must be 'var' on that split"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_one_error_that_names_it(study: Path, tmp_path: Path, damage: Any, says: str) -> None:
    text = (study / "records/sgd/seed0.json").read_text()
    changed = damage(json.dumps(json.loads(text)))
    assert changed != json.dumps(json.loads(text))
    file = tmp_path / "records/sgd/seed0.json"
    file.parent.mkdir(parents=True)
    file.write_text(changed)
    with pytest.raises(ValueError, match=f"seed0.json is damaged or no record of a run; .*: .*{says}") as error:
        compare(wanted(), tmp_path / "out", splits=SPLITS, records=tmp_path / "records")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_makes_a_record_large_is_left_out_and_named(study: Path, tmp_path: Path) -> None:
    whole = RunRecord.read(study / "records/sgd/seed0.json")
    assert whole.dynamics is not None
    layer = whole.dynamics.layers[0].model_copy(update={"log10_std": [-1.2345678] * 120})
    many = whole.dynamics.model_copy(update={"layers": [layer] * 60})
    rows = [{**whole.metrics[0], "epoch": epoch + 1} for epoch in range(1000)]
    large = whole.model_copy(update={"dynamics": many, "metrics": rows})
    large.write(tmp_path / "large.json")
    kept = RunRecord.read(tmp_path / "large.json")
    assert (tmp_path / "large.json").stat().st_size < LIMIT
    assert kept.left_out[0] == "the layers' curves of the gradients' dynamics"
    assert kept.left_out[1].startswith("metrics of all but every ")
    assert kept.metrics[-1] == rows[-1]
    assert kept.measured == whole.measured
    assert kept.dynamics is not None
    assert len(kept.dynamics.layers) == 60


def _run(place: Path, out: str) -> list[str | None]:
    with in_this_process():
        return [outcome.error for outcome in compare(wanted()[:3], place / out, records=place / "records")]


@pytest.mark.slow  # each of two processes imports torch
def test_two_processes_on_one_folder_of_records_share_the_runs(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        errors = [pool.submit(_run, tmp_path, out) for out in ("one", "two")]
        assert [error.result() for error in errors] == [[None] * 3] * 2
    trained = [
        run.path.relative_to(tmp_path / out / "runs").as_posix()
        for out in ("one", "two")
        for run in map(RunFolder, (tmp_path / out / "runs").glob("*/*"))
        if run.model_file.is_file()
    ]
    assert sorted(trained) == ["sgd/seed0", "sgd/seed1", "var/seed0"]  # none twice


def test_a_run_that_is_held_is_not_begun(tmp_path: Path) -> None:
    (variant, *_) = wanted()
    records = Records(tmp_path / "records")
    with records.working_on(variant), pytest.raises(HeldError, match="another process is running seed 0 of sgd in"):
        records.working_on(variant).__enter__()
    assert (tmp_path / "records" / WORKING / ".gitignore").read_text() == "*\n"


def test_a_record_of_a_folder_reads_back(study: Path, tmp_path: Path) -> None:
    from trimtab.studies.prune_run import pruned_file, read_pruned

    run = RunFolder(study / "study/runs/var/seed0")
    record = record_of(run, {"test": read_pruned(pruned_file(run, "test"))})
    record.write(tmp_path / "one.json")
    assert RunRecord.read(tmp_path / "one.json") == record
