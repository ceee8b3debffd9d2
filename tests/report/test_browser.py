"""TensorBoard, a run's report and the page of a text, as readers see them in Chromium.

TensorBoard is started with the documented command. The pictures go into a temporary folder, or into
$CHATGOT_PICTURES for people to look at. Without Chromium the tests are skipped, but they fail on
CI, which has it.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest

pytest.importorskip("playwright")
from playwright.sync_api import Page, expect, sync_playwright

from chatgot.data.preparation.look import Look
from chatgot.data.preparation.pieces import Speech
from chatgot.data.preparation.reader import Findings
from chatgot.report.text_page import write_text_page

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
WAIT_MS = 60_000  # for a busy machine


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("CHATGOT_PICTURES") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run with evaluations, samples and a report."""
    folder = tmp_path_factory.mktemp("run")
    harness.write_config(folder, training={"max_steps": 40, "report": True, "eval_interval": 10})
    assert harness.train_here(folder, "--config", "tiny.yaml") == 0
    return folder


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium: .ci/run installs it")
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        # root has no sandbox
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1280, "height": 1000})
        browser.close()


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Run the documented command on a free port; give the page's address."""
    page = (harness.ROOT / "docs" / "files-of-a-run.md").read_text(encoding="utf-8")
    command = re.search(r"`tensorboard (--logdir logs/tensorboard)`", page)[1]
    program = [sys.executable, "-m", "tensorboard.main", *command.split(), "--port", "0"]
    process = subprocess.Popen(program, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            address = re.search(r"http://\S+", line)
            if address:
                yield address[0]
                return
        pytest.fail("TensorBoard ended before it served a page")
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stderr.close()


@pytest.mark.slow
def test_tensorboard_shows_the_loss_chart_and_the_samples(run, page, pictures):
    with tensorboard(run) as address:
        page.goto(f"{address}#scalars&tagFilter=loss")
        for tag in ("train/loss", "val/loss"):
            expect(page.get_by_text(f"tag: {tag}", exact=True).first).to_be_visible(timeout=WAIT_MS)
        chart = page.locator("vz-line-chart2").first
        expect(chart.locator("svg .plot, svg .line-plot path, svg path").first).to_be_attached(
            timeout=WAIT_MS
        )
        page.wait_for_timeout(1500)  # the animation of its lines
        page.screenshot(path=str(pictures / "tensorboard_loss.png"))

        page.goto(f"{address}#custom_scalars")
        page.reload()
        expect(page.get_by_text("train and validation").first).to_be_visible(timeout=WAIT_MS)
        page.wait_for_timeout(1500)
        page.screenshot(path=str(pictures / "tensorboard_layout.png"))

        page.goto(f"{address}#text")
        page.reload()
        expect(page.get_by_text("samples/prompt_1").first).to_be_visible(timeout=WAIT_MS)
        expect(page.get_by_text("continuation").first).to_be_visible(timeout=WAIT_MS)
        expect(page.get_by_text("KING:").first).to_be_visible(timeout=WAIT_MS)
        page.screenshot(path=str(pictures / "tensorboard_samples.png"))


def test_the_report_opens_complete_in_a_browser_and_fetches_nothing(run, page, pictures):
    (report,) = run.glob("logs/tensorboard/*/report.html")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    expect(page.get_by_text("tiny_").first).to_be_visible(timeout=WAIT_MS)
    assert page.locator("img").count() >= 2
    sizes = page.eval_on_selector_all(
        "img", "pictures => pictures.map(p => [p.complete, p.naturalWidth])"
    )
    assert all(complete and width > 300 for complete, width in sizes)
    for heading in ("Loss", "Samples over time", "Events", "Time", "Configuration"):
        expect(page.get_by_role("heading", name=heading).first).to_be_visible()
    # nothing is wider than the page
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.screenshot(path=str(pictures / "report.png"), full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [480, 1000])
def test_report_fits_a_phone_and_is_as_dark_as_the_screen(run, page, pictures, scheme, width):
    (report,) = run.glob("logs/tensorboard/*/report.html")
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = map(int, re.findall(r"\d+", colour))
    assert (red + green + blue < 3 * 64) is (scheme == "dark")
    # a chart keeps a width at which its numbers can be read
    assert page.locator("img").first.bounding_box()["width"] >= 600
    page.screenshot(path=str(pictures / f"report_{scheme}_{width}.png"), full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_of_a_text_fits_a_phone_and_is_as_dark_as_the_screen(tmp_path, page, pictures, scheme):
    look = Look()
    look.add_file("season 1/" + "long_name" * 12, "SRT subtitles", "utf-8", 1, Findings())
    for _ in look.watch([Speech("Captain " + "Zoë" * 9, "Hello there. " * 9)] * 20):
        pass
    write_text_page(look, tmp_path / "look.html", ["the recipe chatgot_small"])
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 400, "height": 900})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "look.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour))) < 3 * 64) is (scheme == "dark")
    assert [url for url in asked if not url.startswith("file:")] == []
    page.screenshot(path=str(pictures / f"text_page_{scheme}.png"), full_page=True)


def test_report_is_light_on_paper_even_on_a_dark_screen(run, page):
    (report,) = run.glob("logs/tensorboard/*/report.html")
    page.goto(report.as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(15, 23, 42)"
    assert page.evaluate("getComputedStyle(document.images[0]).filter") == "none"
    page.emulate_media(media="screen", color_scheme="light")
