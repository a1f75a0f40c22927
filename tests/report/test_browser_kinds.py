"""Every kind of page in a browser, wide and narrow, light and dark, on paper: whole, legible, decided on the first screen."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import CHROMIUM, DRIVER, WITHOUT, look_as, problems, script, show, started, wait
from tests.report.factory import make_dynamics, make_summary
from tests.report.medclm_factory import write_audit, write_run
from tests.report.precision_factory import precision_study
from tests.report.test_curvature import landscape
from tests.report.test_curvature import summary as curvature_summary
from tests.report.test_live import begin, served
from trimtab.medclm.reviews import load_review
from trimtab.report import render, render_curvature, render_dynamics
from trimtab.report.medclm.audit import render_audit
from trimtab.report.medclm.run import render_medclm_run
from trimtab.report.medclm.viewer import Shown, write_viewer
from trimtab.report.precision.theory import render_precision
from trimtab.studies.summary import AlarmRow, Dynamics

pytest.importorskip("selenium", reason="selenium is not installed")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=WITHOUT)
METHODS = ("sgd", "var", "sam", "cram+", "var+sam", "l1")
KINDS = ("weights", "gradients", "precision", "curvature", "medclm", "audit", "viewer", "watch")


def _write(kind: str, folder: Path) -> Path:
    page = folder / f"{kind}.html"
    if kind == "weights":
        tracked = make_dynamics(("sgd", "var"), (0, 1), steps=60)
        return render(make_summary(METHODS).model_copy(update={"dynamics": tracked}), page)
    if kind == "gradients":
        found = [_alarmed(run) for run in make_dynamics(("sgd", "var", "sam"), (0, 1, 2), steps=60)]
        return render_dynamics(found, page, name="n", headline="h", facts=[("data", "digits")], recipe="a: 1")
    if kind == "precision":
        return render_precision(precision_study(), page)
    if kind == "curvature":
        wide = landscape("sam", [[2.0, 1.0, 2.0], [1.0, 0.1, 1.0], [2.0, 1.0, 2.0]])
        return render_curvature(curvature_summary(landscapes=[*curvature_summary().landscapes, wide]), page)
    if kind == "audit":
        return render_audit(write_audit(folder), page)
    if kind == "medclm":
        (folder / "run").mkdir()
        return render_medclm_run(write_run(folder / "run"), page)
    return _viewer(page)


def _alarmed(run: Dynamics) -> Dynamics:
    """With alarms of every kind on its time line, the first and the last step among them."""
    said = {
        "loss": "the loss is nan; the step is not taken",
        "growth": "the weights' change, as a share of them and of the learning rate, has grown to 1.83 times what is usual, "
        "over many steps; it is 4.65",
        "ranks": "the ranks' weights differ in 1 of 6 tensors, first a_module.with_a.long_name.weight: the ranks have gone "
        "apart",
    }
    steps = (run.steps[0], run.steps[len(run.steps) // 2], run.steps[-1])
    alarms = [
        AlarmRow(step=step, kind=kind, action="warn", text=f"step {step}: {text}")
        for step, (kind, text) in zip(steps, said.items(), strict=True)
    ]
    return run.model_copy(update={"alarms": alarms})


def _viewer(page: Path, ask: str = "Question") -> Path:
    from PIL import Image

    Image.new("RGB", (60, 40)).save(page.parent / "a.png")
    rows = [
        Shown("a.png", 60, 40, None, (0.1, 0.1, 0.5, 0.6), f"{ask} {n}, where?", "First. Then.", "Here " * (n % 4 + 1),
              {"class": ("mass", "node")[n % 2], "organ": "lung", "side": "left", "stage": "easy"}, {"source": str(n)})
        for n in range(30)
    ]  # fmt: skip
    return write_viewer(page, rows, "A set with a long title of its own")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("kinds")
    for seed in (0, 1):
        for method in ("sgd", "var"):
            begin(folder / "study" / method / f"seed{seed}", 3 + seed, seed=seed, method=method)
    begin(folder / "study" / "sam" / "seed0", 1, method="sam", status="diverged")
    with served(folder / "study", every=600) as server, started(folder) as driver:
        driver.pages = {kind: _write(kind, folder).as_uri() for kind in KINDS if kind != "watch"}
        driver.pages["watch"] = server.address
        yield driver


@pytest.fixture
def unmarked(browser: Any, tmp_path: Path) -> str:
    """A viewer of a set of the test's own: what a browser keeps of a set goes by its texts."""
    return _viewer(tmp_path / "view.html", tmp_path.name).as_uri()


def load(driver: Any, kind: str) -> None:
    show(driver, driver.pages[kind])


# Text whose contrast with what lies behind it is below 4.5:1 (3:1 from 24 px, or from 18.7 px in bold); what is written on
# the colours of a map has a test of its own.
CONTRAST = """
const parse = (text) => { const found = text.match(/[\\d.]+/g).map(Number); return [...found.slice(0, 3), found[3] ?? 1]; };
const over = (top, below) => [0, 1, 2].map((at) => top[3] * top[at] + (1 - top[3]) * below[at]).concat(1);
const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, share, at) => {
  const v = c[at] / 255; return sum + share * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
const ground = (e) => { const layers = [];
  for (let at = e; at; at = at.parentElement) { const c = parse(getComputedStyle(at).backgroundColor); layers.push(c);
    if (c[3] === 1) break; }
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]); };
const bad = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !e.checkVisibility()) continue;
  if (e.closest("script, style, noscript, option, .unseen, .picture, .textpoint")) continue;
  const style = getComputedStyle(e), size = parseFloat(style.fontSize), below = ground(e);
  const colour = parse(e.closest("svg") ? style.fill : style.color);
  const [one, two] = [light(over(colour, below)), light(below)].sort((a, b) => b - a);
  const ratio = (one + 0.05) / (two + 0.05), enough = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
  if (ratio < enough) bad.push([e.textContent.slice(0, 40), Math.round(10 * ratio) / 10]);
}
return bad.slice(0, 5);
"""
# Marks, their middles, outside the axes of their figure.
OUTSIDE = """
const bad = [];
for (const chart of document.querySelectorAll(".chart")) for (const plot of chart.querySelectorAll(".subplot")) {
  const layout = chart._fullLayout, left = layout._size.l, top = layout._size.t, box = chart.getBoundingClientRect();
  for (const mark of plot.querySelectorAll(".points path")) {
    const at = mark.getBoundingClientRect(), x = at.x + at.width / 2 - box.x - left, y = at.y + at.height / 2 - box.y - top;
    if (x < -1 || y < -1 || x > layout._size.w + 1 || y > layout._size.h + 1)
      bad.push([chart.id, Math.round(x), Math.round(y)]);
  }
}
return bad.slice(0, 5);
"""


# Contrast of the numbers written into a map with the pixel of the map behind them, the least of all.
ON_MAP = """
const done = arguments[0], image = document.querySelector(".heatmaplayer image"), box = image.getBoundingClientRect();
const picture = new Image();
const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, share, at) => {
  const v = c[at] / 255; return sum + share * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
picture.onload = () => {
  const paper = new OffscreenCanvas(box.width, box.height).getContext("2d", { willReadFrequently: true });
  paper.imageSmoothingEnabled = false;
  paper.drawImage(picture, 0, 0, box.width, box.height);
  const ratios = [...image.closest(".chart").querySelectorAll(".textpoint text")].map((text) => {
    const at = text.getBoundingClientRect(), ink = getComputedStyle(text).fill.match(/[\\d.]+/g).map(Number);
    const ground = paper.getImageData(at.x + at.width / 2 - box.x, at.y + at.height / 2 - box.y, 1, 1).data;
    const [one, two] = [light(ink), light(ground)].sort((a, b) => b - a);
    return ground[3] === 255 ? (one + 0.05) / (two + 0.05) : 0;
  });
  done([ratios.length, Math.min(...ratios)]);
};
picture.src = image.getAttribute("href") || image.getAttribute("xlink:href");
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_numbers_written_into_a_map_are_legible_on_their_cells(browser: Any, dark: bool) -> None:
    look_as(browser, width=1400, dark=dark)
    load(browser, "precision")
    count, least = browser.execute_async_script(ON_MAP)
    assert count > 1
    assert least >= 4.5


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_legible_and_decides_on_its_first_screen(
    browser: Any, kind: str, width: int, dark: bool
) -> None:
    look_as(browser, width=width, dark=dark)
    load(browser, kind)
    assert problems(browser) == []
    assert script(browser, "return document.documentElement.scrollWidth") <= width
    assert script(browser, CONTRAST) == []
    if kind == "viewer":
        ends = "['#picture', '.question', '.answer'].map(s => document.querySelector(s).getBoundingClientRect().bottom)"
        assert script(browser, f"return Math.max(...{ends})") <= 900
        return
    assert script(browser, OUTSIDE) == []
    lead = script(browser, "return document.querySelector('.lead').getBoundingClientRect().bottom")
    plot = "document.querySelector('.chart')"
    figure = script(
        browser,
        f"const s = {plot}._fullLayout._size, box = {plot}.getBoundingClientRect(); return [box.top, box.top + s.t + s.h]",
    )
    assert lead < figure[0]
    assert figure[1] <= 900
    assert script(browser, "return document.querySelectorAll('section').length") == script(
        browser,
        "return [...document.querySelectorAll('section')].filter(s => s.querySelector('figure, table, pre')).length",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_on_paper_is_light_whole_and_without_controls(browser: Any, kind: str) -> None:
    look_as(browser, width=1400, dark=True)
    load(browser, kind)
    script(browser, "addEventListener('afterprint', () => { window.printed = true; })")
    paper = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    pdf = base64.b64decode(paper["data"])
    assert pdf[:5] == b"%PDF-"
    wait(lambda: script(browser, "return window.printed"), "the end of printing")  # the page is back on the screen
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    look = {"width": 690, "height": 900, "deviceScaleFactor": 1, "mobile": False}  # A4 between the margins
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", look)
    try:
        assert script(browser, "return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        controls = ".action, .switch, .contents, .bar:not(td), .marks, .tools, #list, button:not(.sort, .chip)"
        hidden = f"return [...document.querySelectorAll('{controls}')].every(b => !b.checkVisibility())"
        assert script(browser, hidden)
        script(browser, "dispatchEvent(new Event('beforeprint'))")
        wait(lambda: script(browser, "return document.documentElement.scrollWidth") <= 690, "the pages' width")
        tables = "[...document.querySelectorAll('table')].filter(t => t.checkVisibility() && t.offsetWidth > 690)"
        wide = f"return {tables}.map(t => t.id)"
        assert script(browser, wide) == []
        last = "return [...document.querySelectorAll('section')].at(-1).className"
        if kind == "watch":  # which has no sections; its figures are drawn anew for the paper
            paper = "document.querySelector('.chart')._fullLayout.paper_bgcolor"
            light = f"return {paper} === JSON.parse(document.getElementById('page').textContent).themes.light.paper"
            wait(lambda: script(browser, light), "the figure in light")
        else:
            assert script(browser, last) == ("text" if kind == "viewer" else "about")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert problems(browser) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_works_by_keyboard(browser: Any, kind: str) -> None:
    from selenium.webdriver.common.keys import Keys

    look_as(browser, width=1400)
    load(browser, kind)
    body = browser.find_element("css selector", "body")
    if kind == "viewer":
        body.send_keys("jj")
        assert "Question 2," in script(browser, "return document.getElementById('text').textContent")
        return
    reached = []
    for _ in range(14):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        seen = "e.checkVisibility(), e.matches(':focus-visible')"
        reached.append(script(browser, f"const e = document.activeElement; return [e.tagName, e.className, {seen}]"))
        if reached[-1][0] == "BODY":  # past the last one
            assert len(reached) > 5
            reached.pop()
            break
    assert all(seen and ringed for _, _, seen, ringed in reached)
    assert ["A", "skip", True, True] in reached
    if kind == "watch":
        chip = browser.find_element("css selector", ".chip")
        chip.send_keys(Keys.SPACE)
        assert chip.get_attribute("aria-pressed") == "false"
    elif script(browser, "return document.querySelectorAll('.chip').length > 1"):
        chip = browser.find_element("css selector", ".chip")
        name = chip.get_attribute("data-series")
        chip.send_keys(Keys.SPACE)
        assert chip.get_attribute("aria-pressed") == "false"
        assert script(browser, "return document.getElementById('announce').textContent") == f"{name} dimmed"


def test_a_name_is_dimmed_in_every_figure_and_drawn_again(browser: Any) -> None:
    look_as(browser, width=1400)
    load(browser, "weights")
    drawn = "return document.getElementById('s0-figure-accuracy').data.filter(t => t.name === '{}').map(t => t.opacity ?? 1)[0]"
    shown = script(
        browser, "return [...document.querySelectorAll('.chip[aria-pressed=true]')].map(c => c.dataset.series)"
    )
    rest = script(
        browser, "return [...document.querySelectorAll('.chip[aria-pressed=false]')].map(c => c.dataset.series)"
    )
    assert len(shown) in (3, 4)
    assert set(shown) | set(rest) == set(METHODS)
    assert script(browser, drawn.format(shown[0])) == 1
    assert script(browser, drawn.format(rest[0])) < 0.5
    script(browser, f"document.querySelector('.chip[data-series=\"{rest[0]}\"]').click()")
    wait(lambda: script(browser, drawn.format(rest[0])) == 1, "the line in full")


def test_a_surface_turns(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    look_as(browser, width=1400)
    load(browser, "curvature")
    canvas = browser.find_element("css selector", "#s0-figure-surface-0 canvas")
    image = "return document.querySelector('#s0-figure-surface-0 canvas').toDataURL()"
    before = script(browser, image)
    canvas.send_keys(Keys.ARROW_RIGHT)
    wait(lambda: script(browser, image) != before, "the turned surface")


def test_rows_are_marked_found_again_linked_and_exported(browser: Any, unmarked: str) -> None:
    look_as(browser, width=1400)
    show(browser, unmarked)
    body = browser.find_element("css selector", "body")
    body.send_keys("ajjr")
    assert script(browser, "return location.hash") == "#row=3"
    assert script(browser, "return document.querySelectorAll('.q.accepted, .q.rejected').length") == 2
    middles = (
        "[...document.querySelectorAll('.bar > :not(div), .bar select')].map(e => e.offsetTop + e.offsetHeight / 2)"
    )
    assert script(browser, f"const m = {middles}; return Math.max(...m) - Math.min(...m)") < 4  # one line

    def opened_anew() -> bool:
        show(browser, unmarked + "#row=3")  # by a link: at that row, with its mark
        assert " 2, where" in script(browser, "return document.getElementById('text').textContent")
        pressed = "return document.querySelector('.marks button:nth-child(2)').getAttribute('aria-pressed')"
        return bool(script(browser, pressed) == "true")

    wait(opened_anew, "the mark's return")  # Chromium writes what a page stores a little later
    options = "return [...document.getElementById('marked').options].map(o => o.textContent)"
    assert script(browser, options) == ["marks: all", "accepted (1)", "rejected (1)", "not marked (28)"]
    file = browser.folder / "downloads" / "marks.csv"
    file.unlink(missing_ok=True)
    browser.find_element("css selector", "#export").click()
    wait(file.is_file, "the export")
    lines = file.read_text().splitlines()
    assert lines[0] == "row,mark,comment,image,question,answer,class,organ,side,stage,source"
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["1", "accepted", "", "a.png"],
        ["3", "rejected", "", "a.png"],
    ]


def test_a_review_with_comments_and_reviewer_is_exported_for_the_command(browser: Any, unmarked: str) -> None:
    look_as(browser, width=1400)
    show(browser, unmarked)
    assert script(browser, "return [judged().length, found[at]]") == [0, 0]  # nothing kept, at the first row
    body = browser.find_element("css selector", "body")
    body.send_keys("ajr")
    body.send_keys("c")
    browser.switch_to.active_element.send_keys('the box, "j" and a are too small')
    assert script(browser, "return location.hash") == "#row=2"  # letters of a comment are no keys
    browser.find_element("css selector", "#reviewer").clear()  # a browser knows its reviewer from set to set
    browser.find_element("css selector", "#reviewer").send_keys("Ann B")
    script(browser, "document.activeElement.blur()")
    body.send_keys("jj")
    browser.find_element("css selector", "textarea").send_keys("unsure")
    file = browser.folder / "downloads" / "review-Ann-B.json"
    file.unlink(missing_ok=True)
    browser.find_element("css selector", "#review").click()
    wait(file.is_file, "the export")
    review = load_review(file)
    assert (review.reviewer, review.title, review.rows) == ("Ann B", "A set with a long title of its own", 30)
    assert review.set == script(browser, "return data.set")
    said = [(one.row, one.image, one.mark, one.comment) for one in review.judgements]
    assert said == [
        ("1", "a.png", "accepted", ""),
        ("2", "a.png", "rejected", 'the box, "j" and a are too small'),
        ("4", "a.png", "", "unsure"),
    ]
    assert review.marks() == {"1": "accepted", "2": "rejected"}


def test_every_page_is_small_enough_to_mail(browser: Any) -> None:
    from urllib.parse import urlparse

    for kind in set(KINDS) - {"watch"}:  # which is served
        assert Path(urlparse(browser.pages[kind]).path).stat().st_size <= 1_500_000, kind
