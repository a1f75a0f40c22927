"""Networks as files: bytes, what they keep, the figure and the sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.runs.tiny import tiny_recipe
from trimtab.deploy import load_compact, save_compact
from trimtab.pruning import one_shot, recalibrate
from trimtab.report.weights.files import files_section
from trimtab.report.weights.page import study_sections
from trimtab.report.weights.study import Study
from trimtab.runs.evaluation import evaluate
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.metric import METRICS
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train
from trimtab.studies.file_forms import files_headline, frontier, places, smallest
from trimtab.studies.prune_run import prune_run
from trimtab.studies.summary import FileRow, Form, Row, Summary
from trimtab.studies.weights.assemble import assemble


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    recipe = tiny_recipe(epochs=1, pruning__bits=(8, 3), pruning__sparsities=(0.8,))
    return train(recipe, tmp_path_factory.mktemp("files") / "run")


def test_every_form_of_a_run_is_measured_as_its_file_gives_it_back(run: RunFolder, tmp_path: Path) -> None:
    found = prune_run(run)
    forms = [(row.form, round(row.sparsity, 2), row.bits) for row in found.files]
    assert forms == [
        ("fp32", 0.0, None), ("bf16", 0.0, 16), ("compact", 0.0, 8), ("compact", 0.0, 3),
        ("sparse", 0.8, None), ("compact", 0.8, 8), ("compact", 0.8, 3),
    ]  # fmt: skip
    size = {form: row.bytes for form, row in zip(forms, found.files, strict=True)}
    data = load_data(run.recipe)
    model = trained_model(run, data)
    assert size["fp32", 0.0, None] == pytest.approx(run.model_file.stat().st_size, rel=0.02)
    assert size["fp32", 0.0, None] - size["bf16", 0.0, 16] == 2 * sum(one.numel() for one in model.parameters())
    assert size["compact", 0.8, 3] < size["compact", 0.0, 3] < size["compact", 0.0, 8] < size["bf16", 0.0, 16]
    # the last row once more, by hand
    recipe = run.recipe
    calibration = batches_of(recipe, data, "train").sample(recipe.pruning.recalibrate_batches, recipe.seed)
    one_shot(model, 0.8)
    report = save_compact(model, tmp_path / "c.safetensors", bits=3, prepare=lambda net: recalibrate(net, calibration))
    load_compact(tmp_path / "c.safetensors", model)
    assert report.compact_bytes == size["compact", 0.8, 3]
    assert found.files[-1].accuracy == evaluate(model, batches_of(recipe, data, "test"), 10).accuracy
    dense = next(row for row in found.rows if row.sparsity == 0 and not row.recalibrated)
    assert found.files[0].accuracy == dense.accuracy


def test_without_bits_no_file_is_written_and_the_rows_are_the_same(run: RunFolder, tmp_path: Path) -> None:
    with_files = prune_run(run)
    recipe = run.recipe.with_settings({"pruning.bits": ()})
    plain = prune_run(run, recipe=recipe, file=tmp_path / "plain.json")
    assert plain.files == []
    assert plain.rows == with_files.rows
    assert all(not torch.isnan(value).any() for value in trained_model(run, load_data(recipe)).state_dict().values())


def test_the_summary_and_its_page_hold_them(run: RunFolder) -> None:
    prune_run(run)
    summary = assemble([run], run.path.parent)
    assert len(summary.files) == 7
    names = [section.name for section in study_sections(Study(summary))]
    assert names.index("files") == names.index("storage") - 1
    assert "entropy-coded" in summary.headline or "dense, bfloat16" in summary.headline


def file_row(method: str, form: Form, size: int, value: float, seed: int = 0, **more: float) -> FileRow:
    return FileRow(
        method=method, seed=seed, form=form, bytes=size, accuracy=value if value <= 1 else 0.5, bits_per_byte=value, sparsity=0,
    ).model_copy(update=more)  # fmt: skip


ACCURATE = [
    file_row("sgd", "fp32", 300_000, 0.900), file_row("sgd", "compact", 60_000, 0.895, bits=8),
    file_row("sgd", "compact", 70_000, 0.890, bits=6), file_row("l1", "fp32", 300_000, 0.899),
    file_row("l1", "compact", 31_000, 0.883, bits=4, sparsity=0.9), file_row("l1", "compact", 20_000, 0.700, bits=2),
]  # fmt: skip
BITS = [
    file_row("adamw", "fp32", 5_000_000, 2.20), file_row("adamw", "compact", 900_000, 2.21, bits=6),
    file_row("adamw", "compact", 600_000, 2.24, bits=4, sparsity=0.5), file_row("adamw", "compact", 500_000, 2.40, bits=3),
]  # fmt: skip


def made(files: list[FileRow], metric: str) -> Summary:
    rows = [
        Row(method=one.method, seed=0, sparsity=0, sparsity_total=0, recalibrated=False, accuracy=one.accuracy, loss=1.0,
            bits_per_byte=one.bits_per_byte)
        for one in files if one.form == "fp32"
    ]  # fmt: skip
    return Summary(
        name="n", headline="h", created="", metric=metric, chance=0.1, recipe={}, versions={}, hardware={}, runs=[], rows=rows,
        files=files,
    )  # fmt: skip


def test_the_frontier_leaves_out_what_a_smaller_file_beats() -> None:
    found = places(made(ACCURATE, "accuracy"))
    own = [one for one in found if one.method == "sgd" and one.form == "compact"]
    assert [one.size for one in frontier(own, METRICS["accuracy"])] == [60_000]
    bits = [one for one in places(made(BITS, "bits_per_byte")) if one.form == "compact"]
    assert [one.size for one in frontier(bits, METRICS["bits_per_byte"])] == [500_000, 600_000, 900_000]


def test_the_sentence_names_the_smallest_file_that_holds_the_baseline() -> None:
    found = places(made(ACCURATE, "accuracy"))
    pair = smallest(found, "sgd", METRICS["accuracy"])
    assert pair is not None
    assert (pair[0].method, pair[0].size) == ("l1", 31_000)
    text = files_headline(found, "sgd", METRICS["accuracy"])
    assert text == "98.1 % of sgd's dense accuracy in 31 kB of 300 kB: l1, 90 % zeros, 4 bits, entropy-coded (1 seed)"
    bits = files_headline(places(made(BITS, "bits_per_byte")), "adamw", METRICS["bits_per_byte"])
    assert bits.startswith(
        "2.240 bits per byte (+0.040 bits to adamw's dense network) in 600 kB of 5 MB: adamw, 50 % zeros"
    )
    assert files_headline(found[:1], "sgd", METRICS["accuracy"]) == ""
    assert files_headline(found, "none", METRICS["accuracy"]) == ""


def test_the_figure_draws_each_method_over_bytes() -> None:
    section = files_section(Study(made(ACCURATE, "accuracy")))
    assert section is not None
    assert section.sentences[0].startswith("98.1 % of sgd's dense accuracy in 31 kB of 300 kB")
    (figure,) = section.figures
    assert figure.layout["xaxis"]["type"] == "log"
    assert {"sgd, quantised and entropy-coded", "l1, float32 and bfloat16"} <= {
        trace["name"] for trace in figure.states[""]
    }
    bold = [row[1].text for row in section.tables[0].rows if row[-1].best]
    assert "8 bits, entropy-coded" in bold
    assert "6 bits, entropy-coded" not in bold
    assert (
        files_section(Study(made([], "accuracy").model_copy(update={"rows": made(ACCURATE, "accuracy").rows}))) is None
    )
