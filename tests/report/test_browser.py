"""The report in a real browser: headless Chromium, from file://."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import CHROMIUM, DRIVER, WITHOUT, click, problems, script, show, started, wait
from tests.report.factory import make_dynamics, make_summary
from trimtab.report import render
from trimtab.studies.summary import Summary

pytest.importorskip("selenium", reason="selenium is not installed")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=WITHOUT)
EVIL = "</script><b onclick=alert(1)>&%{x}"


def main_summary() -> Summary:
    """The first study of the page: three methods, two seeds of each tracked."""
    labels = ("sgd", "var", EVIL)
    return make_summary(labels).model_copy(update={"dynamics": make_dynamics(labels, (0, 1), steps=60)})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for the module, on a page of two studies."""
    folder = tmp_path_factory.mktemp("browser")
    small = make_summary(("sgd",), (0,), controls=False, recalibrated=False, extras=False, name="small")
    with started(folder) as driver:
        driver.page = render([main_summary(), small], folder / "report.html").as_uri()
        yield driver


def load(driver: Any) -> None:
    """Load the page anew and wait for its figures."""
    show(driver, driver.page)


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """The loaded page as a test before left it; each test undoes what it changes, and no test may log a problem."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    )
    if browser.current_url != browser.page:
        load(browser)
    yield browser
    assert problems(browser) == []


def means(page: Any) -> list[float]:
    """What the line of var in the main figure shows."""
    return script(page, "return document.getElementById('s0-figure-accuracy').data.find(t => t.name === 'var').y")


def test_every_figure_is_drawn_and_nothing_is_fetched(page: Any) -> None:
    counts = script(
        page, "return [...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('.trace').length)"
    )
    assert len(counts) == 27
    maps = script(page, "return document.querySelectorAll('#s0-dynamics-layers .chart .heatmaplayer image').length")
    assert maps == 3
    assert sorted(counts)[3] > 0  # the maps are images, every other figure has traces
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = [one["request"]["url"] for one in sent if one["documentURL"] == page.page]
    assert asked
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    assert script(page, "return document.documentElement.scrollWidth <= innerWidth")


def test_labels_are_text_and_run_nothing(page: Any) -> None:
    assert script(page, "return document.querySelectorAll('[onclick]').length") == 0
    legend = "return [...document.querySelectorAll('.chip')].map(chip => chip.textContent.trim())"
    assert EVIL in script(page, legend)


def test_switch_changes_figure_tables_and_is_announced(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    before = means(page)
    first = page.find_element("css selector", "input[name='s0-state'][value='recalibrated']")
    script(page, "document.querySelector(\"input[name='s0-state']\").focus({preventScroll: false})")
    first.send_keys(Keys.ARROW_RIGHT)  # by keyboard
    wait(lambda: means(page) != before, "the change of the figure")
    summary = make_summary(("sgd", "var", EVIL))
    own = [
        r for r in summary.rows if (r.method, r.score, r.scope, r.recalibrated) == ("var", "magnitude", "global", False)
    ]
    last = max(r.sparsity for r in own)
    expected = [r.accuracy for r in own if r.sparsity == last]
    assert means(page)[-1] == pytest.approx(sum(expected) / len(expected))
    assert "as pruned" in script(page, "return document.getElementById('announce').textContent")
    shown = "return [...document.querySelectorAll('[data-switch=s0-state]')].filter(p => !p.hidden).map(p => p.dataset.when)"
    assert set(script(page, shown)) == {"pruned"}
    assert page.find_element("css selector", "#s0-t-absolute-pruned").is_displayed()
    assert not page.find_element("css selector", "#s0-t-absolute-recalibrated").is_displayed()
    click(page, "input[name='s0-state'][value='recalibrated']")
    wait(lambda: means(page) == before, "the change back")


def test_log_axis_of_the_weights(page: Any) -> None:
    kind = "return document.getElementById('s0-figure-weights')._fullLayout.yaxis.type"
    assert script(page, kind) == "log"
    click(page, "input[name='s0-scale'][value='linear']")
    wait(lambda: script(page, kind) == "linear", "the change of the axis")
    assert script(page, "return document.getElementById('s0-figure-accuracy')._fullLayout.yaxis.type") == "linear"


def test_theme_button_repaints_page_and_figures(page: Any) -> None:
    look = (
        "return [getComputedStyle(document.body).backgroundColor,"
        "document.getElementById('s0-figure-accuracy')._fullLayout.paper_bgcolor,"
        "document.getElementById('s0-figure-accuracy').data.find(t => t.name === 'var').line.color]"
    )
    light = script(page, look)
    assert light[:2] == ["rgb(255, 255, 255)", "#ffffff"]
    click(page, "#theme")
    wait(lambda: script(page, look)[1] == "#14171d", "the dark figure")
    dark = script(page, look)
    assert dark[0] == "rgb(20, 23, 29)"
    assert dark[2] != light[2]
    assert script(page, "return document.getElementById('theme').getAttribute('aria-pressed')") == "true"
    click(page, "#theme")
    wait(lambda: script(page, look) == light, "the light figure again")


def test_dynamics_are_painted_in_the_theme_and_fit(page: Any) -> None:
    look = (
        "return ['dynamics-std', 'dynamics-layers-0', 'dynamics-signal-0'].map(n => "
        "document.getElementById('s0-figure-' + n)._fullLayout).map(f => f.paper_bgcolor + f.font.color)"
    )
    assert script(page, look) == ["#ffffff#1f2430"] * 3
    click(page, "#theme")
    wait(lambda: script(page, look) == ["#14171d#f2f4f8"] * 3, "the dark figures")
    click(page, "#theme")
    wait(lambda: script(page, look) == ["#ffffff#1f2430"] * 3, "the light figures")
    inside = (
        "return [...document.querySelectorAll('#s0-dynamics-layers .ytick text')].every("
        "t => t.getBoundingClientRect().left >= t.closest('.chart').getBoundingClientRect().left - 1)"
    )
    assert script(page, inside)


def test_dark_follows_the_system(page: Any) -> None:
    load(page)  # without a theme chosen by the button
    look = (
        "return [getComputedStyle(document.body).backgroundColor, "
        "document.getElementById('s0-figure-accuracy')._fullLayout.paper_bgcolor]"
    )
    seen = []
    for system, figure in (("light", "#ffffff"), ("dark", "#14171d"), ("light", "#ffffff")):
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": system}]}
        )
        wait(lambda figure=figure: script(page, look)[1] == figure, f"the {system} figure")
        seen.append(script(page, look))
    assert seen[1] == ["rgb(20, 23, 29)", "#14171d"]
    assert seen[0] == seen[2] != seen[1]


def test_copy_button_fills_the_clipboard(page: Any) -> None:
    script(page, "document.addEventListener('copy', e => { window.fallback = String(getSelection()); })")
    script(
        page,
        "const write = navigator.clipboard && navigator.clipboard.writeText.bind(navigator.clipboard);"
        "if (write) navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); };",
    )
    click(page, "button.copy[data-table='s0-t-absolute-recalibrated']")
    text = wait(lambda: script(page, "return window.copied || window.fallback"), "copying")
    lines = [line.split("\t") for line in text.splitlines()]
    assert lines[0] == ["method", "dense", "50 %", "70 %", "80 %", "90 %", "95 %", "98 %"]
    assert [line[0] for line in lines[1:]] == ["sgd", "var", EVIL]
    assert float(lines[2][-1]) == pytest.approx(100 * means(page)[-1], abs=1e-3)
    assert script(page, "return document.getElementById('announce').textContent") == "Copied"


def test_table_sorts_by_number(page: Any) -> None:
    rows = "[...document.querySelectorAll('#s0-t-absolute-recalibrated tbody tr')]"
    column = f"return {rows}.map(r => Number(r.cells[5].dataset.value))"
    for _ in range(2):
        click(page, "#s0-t-absolute-recalibrated th:nth-child(6) .sort")
        values = script(page, column)
        head = page.find_element("css selector", "#s0-t-absolute-recalibrated th:nth-child(6)")
        assert values == sorted(values, reverse=head.get_attribute("aria-sort") == "descending")
    assert head.get_attribute("aria-sort") == "descending"


def test_downloads_rows_summary_and_figures(page: Any) -> None:
    downloads: Path = page.folder / "downloads"
    for kind in ("csv", "json"):
        click(page, f"button.download[data-study='s0'][data-kind='{kind}']")
    for kind in ("svg", "png"):
        click(page, f"button.image[data-figure='s0-figure-accuracy'][data-kind='{kind}']")
    click(page, "button.image[data-figure='s0-figure-dynamics-layers-0'][data-kind='svg']")
    names = (
        "rows.csv",
        "summary.json",
        *(f"s0-figure-{n}" for n in ("accuracy.svg", "accuracy.png", "dynamics-layers-0.svg")),
    )
    wait(lambda: all((downloads / n).is_file() and (downloads / n).stat().st_size for n in names), "the downloads")
    summary = main_summary()
    assert json.loads((downloads / "summary.json").read_text())["rows"] == summary.model_dump(mode="json")["rows"]
    lines = (downloads / "rows.csv").read_text().splitlines()
    assert len(lines) == 1 + len(summary.rows)
    assert lines[0].startswith("method,seed,sparsity")
    assert (downloads / "s0-figure-accuracy.svg").read_text().startswith("<svg")
    assert (downloads / "s0-figure-accuracy.png").read_bytes()[:4] == b"\x89PNG"


def test_printed_page_is_light_without_buttons(page: Any) -> None:
    click(page, "#theme")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert script(page, "return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert script(page, "return [...document.querySelectorAll('.action, .switch')].every(b => b.offsetParent === null)")
    script(page, "dispatchEvent(new Event('beforeprint'))")
    layout = "document.getElementById('s0-figure-accuracy')._fullLayout"
    figure = f"return [{layout}.paper_bgcolor, {layout}.width]"
    wait(lambda: script(page, figure) == ["#ffffff", 660], "the light figure")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    load(page)


def test_narrow_screen_has_no_sideways_scrolling(page: Any) -> None:
    size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    load(page)
    assert script(page, "return document.documentElement.scrollWidth <= innerWidth")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
