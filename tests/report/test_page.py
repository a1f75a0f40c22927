from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest

from tests.report.factory import make_summary
from trimtab.report import render
from trimtab.report.bundle import packed_script
from trimtab.report.page import script_json
from trimtab.report.palette import THEMES, Look, look, looks, on_scale, text_on
from trimtab.report.parts import Cell, Table, aligned, number
from trimtab.report.weights.resources import break_even
from trimtab.studies.summary import Latency, Summary

EVIL = "</script><img src=x onerror=alert(1)>{{7*7}}%{x}"


class Reader(HTMLParser):
    """Collects elements, scripts and visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside = tag
            self.scripts += [""] if tag == "script" else []

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif not self.inside:
            self.text += data


def read(summary: Summary | list[Summary], folder: Path) -> Reader:
    path = folder / "deep" / "report.html"
    assert render(summary, path) == path
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def page_of(reader: Reader) -> dict[str, dict[str, dict[str, object]]]:
    return next(json.loads(text) for text in reader.scripts if text.startswith('{"themes"'))


def test_everything_is_inside_and_plotly_once(tmp_path: Path) -> None:
    reader = read([make_summary(), make_summary(("sgd",), name="second")], tmp_path)
    assert not [a for _, a in reader.elements if "src" in a or (a.get("href") or "#")[0] != "#"]
    assert not [tag for tag, _ in reader.elements if tag in ("link", "iframe", "object", "base")]
    assert (tmp_path / "deep" / "report.html").stat().st_size < 1_500_000
    assert sum(packed_script() in text for text in reader.scripts) == 1
    ids = [a["id"] for _, a in reader.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert "second" in reader.text


def test_every_figure_is_valid_for_plotly_and_has_its_place(tmp_path: Path) -> None:
    reader = read(make_summary(), tmp_path)
    figures = page_of(reader)["figures"]
    ids = {a.get("id") for _, a in reader.elements}
    assert {name.removeprefix("s0-figure-") for name in figures} >= {
        "accuracy",
        "controls-0",
        "storage",
        "latency",
        "cost",
        "weights",
    }

    def opaque(value: object, key: str = "") -> object:
        """Theme tokens replaced as the page's script does."""
        if isinstance(value, dict):
            return {name: opaque(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [opaque(item, key) for item in value]
        return "#123456" if key.endswith("color") and str(value).startswith("@") else value

    for name, figure in figures.items():
        assert name in ids
        for state, traces in figure["states"].items():
            drawn = go.Figure(opaque(traces), opaque(figure["layout"]))
            drawn.update_layout(figure["layouts"].get(state, {}))
            assert "@" not in drawn.to_json()


def test_main_figure_shows_means_intervals_seeds_chance_and_dense(tmp_path: Path) -> None:
    summary = make_summary(("sgd", "var"))
    states = page_of(read(summary, tmp_path))["figures"]["s0-figure-accuracy"]["states"]
    for state, traces in states.items():
        by_name = {trace["name"]: trace for trace in traces}
        assert set(by_name) == {f"{m}{part}" for m in ("sgd", "var") for part in ("", ", seeds", ", interval")} | {
            "chance",
            "sgd, dense",
        }
        own = [
            r
            for r in summary.rows
            if (r.method, r.score, r.scope, r.recalibrated) == ("var", "magnitude", "global", state == "recalibrated")
        ]
        last = [r.accuracy for r in own if r.sparsity == max(row.sparsity for row in own)]
        assert by_name["var"]["y"][-1] == pytest.approx(sum(last) / 3)
        assert by_name["var"]["x"][0] == 0.0
        assert by_name["var"]["x"][4] == pytest.approx(1.0)  # 90 %: one tenth is left
        assert sorted(by_name["var, seeds"]["y"][-3:]) == pytest.approx(sorted(last))
        assert by_name["chance"]["y"] == [0.1, 0.1]
    assert states["pruned"] != states["recalibrated"]


def test_labels_cannot_break_out(tmp_path: Path) -> None:
    reader = read(make_summary(("sgd", EVIL), name=EVIL), tmp_path)
    assert not [tag for tag, _ in reader.elements if tag == "img"]
    assert not [a for _, a in reader.elements if any(name.startswith("on") for name in a)]
    assert EVIL in reader.text
    page = page_of(reader)
    names = [t["name"] for f in page["figures"].values() for ts in f["states"].values() for t in ts if "name" in t]
    assert not [name for name in names if "<" in name]
    data = next(json.loads(text) for text in reader.scripts if text.startswith('{"schema"'))
    assert Summary.model_validate(data) == make_summary(("sgd", EVIL), name=EVIL)


def test_script_json_has_no_markup() -> None:
    text = str(script_json({"a": "</script><!--&\u2028"}))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--&\u2028"}
    with pytest.raises(ValueError, match="JSON"):
        script_json({"a": float("nan")})


def test_missing_parts_are_said_and_have_no_empty_box(tmp_path: Path) -> None:
    reader = read(make_summary(("sgd",), (0,), controls=False, recalibrated=False, extras=False), tmp_path)
    for sentence in (
        "No controls were measured",
        "No sparse file was written",
        "No latency was measured",
        "The cost of a step was not measured",
        "No weight distributions",
        "One seed: no interval",
        "nothing to switch",
    ):
        assert sentence in reader.text
    assert set(page_of(reader)["figures"]) == {"s0-figure-accuracy"}
    assert not [a for tag, a in reader.elements if tag == "input"]
    assert "±" not in reader.text


def test_seeds_and_kind_of_interval_are_stated(tmp_path: Path) -> None:
    text = read(make_summary(), tmp_path).text
    assert "95 % Student's t intervals of the mean over 3 seeds" in text
    assert make_summary().headline in text
    assert "digits_resnet" in text
    assert "batch_size: 64" in text
    assert "2.13.0" in text


def test_nothing_to_report_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one summary"):
        render([], tmp_path / "r.html")
    with pytest.raises(ValueError, match="no rows"):
        render(make_summary().model_copy(update={"rows": []}), tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def _ratios(*ratios: float) -> list[Latency]:
    sparsities = (0.5, 0.9, 0.99)
    return [
        Latency(what="x", sparsity=s, batch=1, ratio=r, faster=r > 1) for s, r in zip(sparsities, ratios, strict=True)
    ]


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ((0.1, 0.2, 0.9), "not faster at any sparsity measured (up to 99 %)"),
        ((1.1, 2.0, 3.0), "faster at every sparsity measured (from 50 %)"),
        (
            (0.2, 0.5, 2.0),
            "faster from about 97 %, not faster below",
        ),  # the middle of 90 and 99 % in density: 3.2 % left
        ((0.2, 2.0, 0.9), "not faster at the highest sparsity measured (99 %)"),
    ],
)
def test_break_even_in_words(ratios: tuple[float, ...], words: str) -> None:
    assert break_even(_ratios(*ratios)) == words


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", list(THEMES))
def test_contrast_is_wcag_aa(theme: str) -> None:
    colours = THEMES[theme]
    for ground in ("paper", "panel"):
        for text in ("ink", "muted", "link", "good", "bad"):
            assert _contrast(colours[text], colours[ground]) >= 4.5
    for series in colours["series"]:
        assert _contrast(series, colours["paper"]) >= 3


def test_every_method_looks_different_and_the_baseline_is_first() -> None:
    found = looks([f"m{i}" for i in range(24)], "m5")
    assert next(iter(found)) == "m5"
    assert len(set(found.values())) == 24
    usual = looks(["sgd", "var", "sam", "cram+", "var+sam", "var+cram+", "l1", "adamw"], "sgd").values()
    for part in ("colour", "dash", "marker"):
        assert len({getattr(look, part) for look in usual}) == 8


def test_a_look_depends_on_the_name_alone() -> None:
    labels = ["sgd", "var[var.strength=1e-05]", "sam", "nuclear+sam"]
    for others in (["adam"], ["l1", "var"], []):
        found = looks([*others, *reversed(labels)], "sgd")
        assert {name: found[name] for name in labels} == {name: look(name) for name in labels}
    assert look("var[var.strength=1e-05]") == Look("@s19", "dash", "triangle-up")  # sha256 6b 59 03
    colours = [THEMES[theme]["series"] for theme in THEMES]
    assert len(colours[0]) == len(colours[1]) == len(set(colours[0])) == len(set(colours[1])) == 24


def test_labels_on_every_colour_of_a_map_are_legible() -> None:
    grounds = [on_scale(share / 500) for share in range(501)]
    assert min(_contrast(text_on(ground), ground) for ground in grounds) >= 4.5
    assert {text_on(ground) for ground in grounds} == {"#000000", "#ffffff"}


def test_numbers_of_a_column_have_the_same_decimals() -> None:
    cells = [
        [number(value), number(share, unit="x"), Cell("as it is", 1.23456)]
        for value, share in ((12.34, 2.0), (0.5, 31.25))
    ]
    table = aligned(Table("t", "", ["a", "b", "c"], [*cells, [number(None), number(0.0), Cell("")]]))
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["12.34", "2.0x", "as it is"], ["0.50", "31.2x", "as it is"], ["", "0.0", ""],
    ]  # fmt: skip
    assert [row[0].value for row in table.rows] == [12.34, 0.5, None]
