"""The viewer in a real browser, from file://: rows, box, masks, filters, search, keys, hostile texts."""

from __future__ import annotations

import pytest

from tests.medclm.samples import source
from tests.report.browser import CHROMIUM, DRIVER, FLAGS, wait
from trimtab.cli.medclm.use import write_view
from trimtab.medclm.building import build
from trimtab.report.medclm.viewer import Shown, write_viewer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
]
EVIL = "</script><img src=x onerror=document.title='broken'>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    folder = build(source(tmp_path / "source"), tmp_path / "out").folder
    browser.get(write_view(folder).as_uri())
    wait(lambda: browser.execute_script("return document.documentElement.dataset.ready"), "the page")
    return folder


def _press(browser, key):
    browser.execute_script("dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))", key)


def _shown(browser):
    return browser.execute_script(
        "return {question: document.querySelector('.question').textContent,"
        " answer: document.querySelector('.answer').textContent,"
        " boxes: document.querySelectorAll('#picture rect.over').length,"
        " masks: document.querySelectorAll('#picture canvas').length,"
        " width: document.querySelector('#picture img').naturalWidth,"
        " image: decodeURIComponent(document.querySelector('#picture img').getAttribute('src')),"
        " count: document.getElementById('count').textContent}"
    )


def test_rows_are_shown_one_after_the_other_with_image_box_and_masks(browser, opened):
    rows = list(opened.rows())
    for row, image in rows[:4]:
        wait(lambda: _shown(browser)["width"] == 40 and _shown(browser)["masks"] == 1, "image and masks")
        found = _shown(browser)
        assert (found["question"], found["answer"], found["image"]) == (row.question, row.answer, image)
        assert found["boxes"] == (row.box is not None)
        _press(browser, "j")
    _press(browser, "k")
    assert _shown(browser)["question"] == rows[3][0].question
    _press(browser, "n")
    assert _shown(browser)["image"] != rows[3][1]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_box_stands_where_the_record_says(browser, opened):
    row = next(row for row, _ in opened.rows() if row.box is not None)
    number = next(n for n, (other, _) in enumerate(opened.rows()) if other.row_id == row.row_id)
    browser.execute_script("go(arguments[0])", number)
    box = browser.execute_script(
        "const r = document.querySelector('#picture rect.over').getBoundingClientRect(),"
        " p = document.querySelector('#picture img').getBoundingClientRect();"
        "return [(r.left - p.left) / p.width, (r.top - p.top) / p.height, (r.right - p.left) / p.width,"
        " (r.bottom - p.top) / p.height]"
    )
    assert box == pytest.approx(row.box.corners, abs=0.01)
    _press(browser, "b")
    assert _shown(browser)["boxes"] == 0


def test_filters_and_search_keep_exactly_the_rows_that_fit(browser, opened):
    rows = [row for row, _ in opened.rows()]
    choose = "const s = document.getElementById('facet-' + arguments[0]); s.value = arguments[1]; filter()"
    browser.execute_script(choose, "stage", "hard")
    hard = sum(row.stage == "hard" for row in rows)
    assert _shown(browser)["count"].startswith(f"{hard} of {len(rows)} rows")
    browser.execute_script("document.getElementById('search').value = 'NODULE'; filter()")
    both = sum(
        row.stage == "hard" and "nodule" in f"{row.question} {row.answer} {row.seed_text}".lower() for row in rows
    )
    assert 0 < both < hard
    assert _shown(browser)["count"].startswith(f"{both} of")
    browser.execute_script("document.getElementById('reset').click()")
    assert _shown(browser)["count"].startswith(f"{len(rows)} of")


def test_hostile_texts_stay_texts(browser, tmp_path):
    row = Shown(
        "no such.png", 4, 4, None, None, EVIL, EVIL, EVIL, {"class": EVIL, "organ": EVIL, "stage": "easy"}, {"x": EVIL}
    )
    browser.get(write_viewer(tmp_path / "view.html", [row], title=EVIL).as_uri())
    wait(
        lambda: browser.execute_script("return document.querySelector('.missing')"),
        "the note that the image is missing",
    )
    assert browser.execute_script("return document.querySelector('.question').textContent") == EVIL
    assert browser.title.startswith("</script>")
