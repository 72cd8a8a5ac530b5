"""The report in a browser: controls, layout, and no network access."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrcnn_jax.evaluation.analysis import Analysis
from mrcnn_jax.evaluation.coco_metrics import Scores
from mrcnn_jax.tools.report.write import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install -e '.[test]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def address(scores: Scores, made: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("browser") / "report.html"
    write_report(scores, made / "images", output, title="made up")
    return output.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


@pytest.fixture
def view(browser: Any, address: str) -> Iterator[Any]:
    """A function that opens the page. Afterwards, checks that there were no errors and no requests."""
    contexts, errors, requests = [], [], []

    def open_page(width: int = 1300, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert {url for url in requests if not url.startswith("data:")} == {address}


def shown(page: Any, selector: str) -> int:
    return page.locator(f"{selector}:visible").count()


def visible_files(page: Any) -> list[str]:
    """The file names of the visible images, in order."""
    return page.locator(".images figure:visible figcaption b").all_inner_texts()


def test_selected_class_applies_everywhere(view: Any) -> None:
    page = view()
    assert len(visible_files(page)) == 5
    all_averages = page.locator("[data-precision] b").all_inner_texts()
    page.select_option("#images-class", label="kite")
    assert sorted(visible_files(page)) == ["0.png", "2.png"]
    assert page.inner_text("#status") == "2 of 5 images"
    assert page.input_value("#curves-class") == page.input_value("#images-class")
    of_first = page.locator("figure:has-text('0.png')")
    for layer in ("masks path", "boxes > g", "skeletons > g", "names text"):
        assert of_first.locator(f".predicted .{layer}:not(.dimmed)").count() == 2  # predicted as kites
        assert of_first.locator(f".annotated .{layer}:not(.dimmed)").count() == 3
    assert page.locator(".tab-segm tr.selected").inner_text().startswith("kite")
    averages = page.locator("[data-precision] b").all_inner_texts()
    assert averages != all_averages
    assert averages[5] == page.locator(".tab-segm tr.selected td").nth(1).inner_text()  # AP of masks
    page.select_option("#curves-class", "")
    assert len(visible_files(page)) == 5
    assert page.locator("[data-precision] b").all_inner_texts() == all_averages


def test_curves_of_a_class(view: Any, analysis: Analysis) -> None:
    page = view()
    page.select_option("#curves-class", label="kite")
    precision = analysis.tables[1].precision[..., 1]
    left, right, bottom, top = map(float, page.locator("[data-plot]").nth(1).get_attribute("data-plot").split())
    for k, expected in enumerate((precision[0], precision[5], precision.mean(axis=0))):
        points = page.locator("[data-precision]").nth(1).locator("polyline").nth(k).get_attribute("points")
        x, y = np.array([point.split(",") for point in points.split()], float).T
        np.testing.assert_allclose((x - left) / (right - left), np.linspace(0, 1, 101), atol=0.001)
        np.testing.assert_allclose((y - bottom) / (top - bottom), expected, atol=0.004)


def test_class_without_images(view: Any) -> None:
    page = view()
    page.select_option("#curves-class", label="kiwi")
    assert visible_files(page) == []
    assert page.inner_text("#status") == "0 of 5 images; no image on this page matches"
    assert page.locator("[data-precision] polyline").first.get_attribute("points") == ""
    assert page.locator("[data-precision] b").first.inner_text() == "\N{EN DASH}"
    assert shown(page, ".group") == 0


def test_class_in_the_table_is_toggled(view: Any) -> None:
    page = view()
    page.click(".tab-segm th button:has-text('boat')")
    assert sorted(visible_files(page)) == ["0.png", "1.png"]
    page.click(".tab-segm th button:has-text('boat')")
    assert len(visible_files(page)) == 5


def test_group_and_outcome(view: Any) -> None:
    page = view()
    page.select_option("#group", "best")
    assert visible_files(page) == ["1.png", "2.png"]
    assert page.locator("h3:visible").all_inner_texts() == ["Best"]
    page.select_option("#group", "")
    for outcome in ("duplicate", "classification", "localization", "both", "background"):
        page.select_option("#outcome", outcome)
        assert visible_files(page) == ["0.png"], outcome
        assert page.locator(".images figure:visible .boxes > g:not(.dimmed)").count() == 1
    page.select_option("#outcome", "missed")
    assert sorted(visible_files(page)) == ["0.png", "3.png"]


def test_slider_hides_predictions_below_it(view: Any) -> None:
    page = view()
    before = page.locator(".annotated rect:visible").count()
    assert shown(page, ".predicted rect") == 9
    page.focus("#score")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("output") == "0.80"
    assert shown(page, ".predicted rect") == 5
    assert page.locator(".predicted .masks path:visible").count() == 5
    assert page.locator(".annotated rect:visible").count() == before
    page.keyboard.press("End")
    assert shown(page, ".predicted rect") == 0


def test_layers(view: Any) -> None:
    page = view()
    for layer, element in (("masks", "path"), ("boxes", "rect"), ("skeletons", "circle"), ("names", "text")):
        drawn = f".images .{layer} {element}"
        assert shown(page, drawn) > 0
        page.uncheck(f".show-{layer}")
        assert shown(page, drawn) == 0
        page.check(f".show-{layer}")
        assert shown(page, drawn) > 0


def test_sorting(view: Any) -> None:
    page = view()
    names = page.locator(".tab-segm tbody th")
    assert names.all_inner_texts() == ["boat", "kite", "person", "kiwi"]
    page.click(".tab-segm thead button:has-text('class')")
    assert names.all_inner_texts() == ["boat", "kite", "kiwi", "person"]
    page.focus(".tab-segm thead th:nth-child(3) button")
    page.keyboard.press("Enter")
    head = page.locator(".tab-segm thead th").nth(2)
    assert head.get_attribute("aria-sort") == "descending"
    values = page.locator(".tab-segm tbody tr td:nth-child(3)")
    numbers = [float(text) for text in values.all_inner_texts()[:3]]
    assert numbers == sorted(numbers, reverse=True)
    assert len(set(numbers)) == 3
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in values.all_inner_texts()[:3]] == sorted(numbers)
    assert names.all_inner_texts()[3] == "kiwi"  # undefined values come last in either order


def test_tabs(view: Any) -> None:
    page = view()
    assert shown(page, ".tab") == 1
    page.check(".pick-keypoints")
    assert page.locator(".tab:visible").get_attribute("class") == "tab tab-keypoints"


def test_enlarging(view: Any) -> None:
    page = view()
    figure = page.locator("#image0")
    before = figure.bounding_box()["width"]
    figure.locator("a.pair").click()
    assert figure.bounding_box()["width"] > 1.5 * before
    figure.locator("a.close").click()
    assert figure.bounding_box()["width"] == before


def test_keyboard_navigation(view: Any) -> None:
    page = view()
    page.focus("#images-class")
    focused = []
    for _ in range(8):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    toggles = ["show-masks", "show-boxes", "show-skeletons", "show-names"]
    assert focused == ["group", "outcome", "score", *toggles, "pair"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.url.endswith("#image0")


CONTRAST = """(selector) => {
  const luminance = (color) => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const element = document.querySelector(selector);
  let background = element;
  while (getComputedStyle(background).backgroundColor === "rgba(0, 0, 0, 0)") background = background.parentElement;
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(background).backgroundColor].map(luminance);
  return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), b];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrast(view: Any, scheme: str) -> None:
    """WCAG requires a contrast of at least 4.5."""
    page = view(color_scheme=scheme)
    for selector in (
        "body",
        "h1",
        ".note",
        ".description",
        "figcaption span",
        ".tile span",
        ".legend",
        "#status",
        "select",
    ):
        contrast, background = page.evaluate(CONTRAST, selector)
        assert contrast >= 4.5, selector
        assert (background > 0.5) == (scheme == "light"), selector


@pytest.mark.parametrize("width", [320, 400, 1300, 2200])
def test_no_horizontal_scrolling(view: Any, width: int) -> None:
    page = view(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_page_without_scripts(view: Any) -> None:
    page = view(java_script_enabled=False)
    assert shown(page, ".js-only") == 0
    assert len(visible_files(page)) == 5
    page.uncheck(".show-masks")
    assert shown(page, ".masks path") == 0
    page.check(".pick-bbox")
    assert page.locator(".tab:visible").get_attribute("class") == "tab tab-bbox"
