"""The page of the service in a browser: an image dropped, masks seen and filtered, a corrupt file refused."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.service import BUCKETS, FakePredictor, png, serving

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install -e '.[test]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path: apt-get install chromium"),
]
DROP = """([name, text]) => {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
}"""
PIXEL = """([x, y]) => {
  const canvas = document.getElementById("canvas"), factor = canvas.width / 96;
  return [...canvas.getContext("2d").getImageData(x * factor, y * factor, 1, 1).data].slice(0, 3);
}"""
IMAGE = [30, 100, 50]  # the color of `png(30)`


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """The page. Afterwards, checks that there were no errors and no requests to other servers."""
    errors, requests = [], []
    with serving(FakePredictor()) as client, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"http://127.0.0.1:{client.port}/")
        yield page
        browser.close()
    # The console lists requests that fail.
    assert [error for error in errors if not error.startswith("Failed to load resource")] == []
    assert {url.split("?")[0] for url in requests} <= {f"http://127.0.0.1:{client.port}/{path}" for path in PATHS}


PATHS = ("", "predict")


def drop(page: Any, content: bytes, name: str = "a.png") -> None:
    page.evaluate(DROP, [name, base64.b64encode(content).decode()])
    sync_api.expect(page.locator("#message")).not_to_contain_text("being processed")


def pixel(page: Any, x: float, y: float) -> list[int]:
    return page.evaluate(PIXEL, [x, y])


def set_score(page: Any, value: str) -> None:
    page.locator("#score").fill(value)


def test_dropped_image_and_its_masks(page: Any) -> None:
    drop(page, png(30))
    assert page.inner_text("#message") == "a.png: 1 of 2 detections, 96 x 64 pixels"
    assert page.locator("#list tr").all_inner_texts() == ["cat\t0.900"]
    assert pixel(page, 80, 50) == pytest.approx(IMAGE, abs=2)  # no detection
    inside, below = pixel(page, 45, 18), pixel(page, 45, 32)  # the mask is the upper half of the box
    assert below == pytest.approx(IMAGE, abs=2)
    assert np.abs(np.subtract(inside, IMAGE)).max() > 30
    page.uncheck("#masks")
    assert pixel(page, 45, 18) == pytest.approx(IMAGE, abs=2)
    page.check("#masks")
    assert pixel(page, 45, 18) == inside
    edge = pixel(page, 50, 30)  # of the box
    page.uncheck("#boxes")
    assert pixel(page, 50, 30) != edge
    page.check("#boxes")


def test_filters(page: Any) -> None:
    drop(page, png(30))
    set_score(page, "0.3")
    assert page.locator("#list tr").all_inner_texts() == ["cat\t0.900", "dog\t0.400"]
    assert page.locator("#class option").all_inner_texts() == ["all classes", "cat", "dog"]
    inside = pixel(page, 45, 18)
    page.select_option("#class", "dog")
    assert page.locator("#list tr").all_inner_texts() == ["dog\t0.400"]
    assert pixel(page, 45, 18) == pytest.approx(IMAGE, abs=2) != inside
    page.select_option("#class", "")
    set_score(page, "0.95")
    assert page.inner_text("#message") == "a.png: 0 of 2 detections, 96 x 64 pixels"
    set_score(page, "0.5")


def test_download(page: Any) -> None:
    drop(page, png(30), "some photo.png")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "some photo.json"
    content = json.loads(download.value.path().read_text())
    assert [one["category"] for one in content["detections"]] == ["cat", "dog"]
    assert [content["height"], content["width"]] == list(BUCKETS[0])


def test_corrupt_file_is_refused_with_the_reason(page: Any) -> None:
    drop(page, png(30)[:-30], "broken.png")
    assert page.inner_text("#message").startswith("broken.png: the image cannot be decoded: ")
    assert not page.locator("#result").is_visible()
    drop(page, b"hello", "notes.txt")
    assert "notes.txt: the image cannot be decoded: it is not one of BMP" in page.inner_text("#message")
    drop(page, png(30))
    assert page.locator("#result").is_visible()
    assert page.locator("#message.error").count() == 0


def test_chosen_file(page: Any, tmp_path: Any) -> None:
    (tmp_path / "chosen.png").write_bytes(png(20))
    page.set_input_files("#file", tmp_path / "chosen.png")
    sync_api.expect(page.locator("#message")).to_contain_text("chosen.png: 1 of 2 detections")


def test_server_that_is_gone(page: Any) -> None:
    page.route("**/predict*", lambda route: route.abort())
    drop(page, png(30))
    assert page.inner_text("#message") == "The server cannot be reached."
    page.unroute("**/predict*")
