"""The README's pictures are small and there; their maker shows a screen as a terminal does.

No test starts a training. The last one needs Chromium, as tests/report/test_browser.py does.
"""

import html
import importlib.util
import io
import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import harness
import made_runs
import pytest
from PIL import Image

from chatgot.report.page import write_report

FOLDER = harness.ROOT / "docs" / "pictures"
NAMES = ("report.png", "terminal.png")
IMAGE = re.compile(r'!\[([^\]]+)\]\(([^)\s]+)\)|<img\b[^>]*\bsrc="([^"]+)"[^>]*>')
ALT = re.compile(r'\balt="([^"]+)"')


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", FOLDER / "make_pictures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


maker = load_maker()


def alt_texts(markdown: str) -> dict[str, str]:
    """Return the alt text of each picture of a Markdown text, by the picture's path."""
    texts = {}
    for image in IMAGE.finditer(markdown):
        if image[2]:
            texts[image[2]] = image[1]
        else:
            alt = ALT.search(image[0])
            texts[image[3]] = alt[1] if alt else ""
    return texts


# --------------------------------------------------------------------------------------------------
# The two pictures


@pytest.mark.parametrize("name", NAMES)
def test_picture_is_a_small_png_as_wide_as_stated(name):
    content = (FOLDER / name).read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) < 150_000
    picture = Image.open(io.BytesIO(content))
    assert picture.width == maker.WIDTH * maker.PIXELS_PER_CSS_PIXEL == 1800
    assert 300 < picture.height < 2 * picture.width


@pytest.mark.parametrize("name", NAMES)
def test_readme_shows_the_picture_and_says_what_is_on_it(name):
    readme = (harness.ROOT / "README.md").read_text(encoding="utf-8")
    alt = alt_texts(readme).get(f"docs/pictures/{name}", "")
    assert len(alt.split()) >= 3


def test_alt_text_is_read_from_markdown_and_from_html():
    text = '![a b](x.png) <img width="900" src="y.png" alt="c d"> <img src="z.png">'
    assert alt_texts(text) == {"x.png": "a b", "y.png": "c d", "z.png": ""}


# --------------------------------------------------------------------------------------------------
# From what a terminal receives to HTML


def rows_after(*pieces: bytes) -> list:
    return list(maker.screens(pieces))[-1]


def text_of(page: str) -> list[str]:
    """Return the lines that a reader of a screen's page sees."""
    rows = re.findall("<div>(.*?)</div>", page)
    return [html.unescape(re.sub("<[^>]*>", "", row)).rstrip() for row in rows]


def test_screen_keeps_colours_and_bold_and_escapes_markup():
    rows = rows_after(b"\x1b[32mok\x1b[0m <b>&\x1b[1;33mcareful\x1b[0m \x1b[7mswapped\x1b[0m")
    row = maker.row_as_html(rows[0])
    assert '<span style="color:#56d364">ok</span> &lt;b&gt;&amp;' in row
    assert '<span style="color:#e3b341;font-weight:700">careful</span>' in row
    assert f'<span style="color:{maker.GROUND};background:{maker.INK}">swapped</span>' in row


def test_screen_takes_colours_beyond_the_sixteen():
    row = maker.row_as_html(rows_after(b"\x1b[38;2;1;2;255mx\x1b[0m\x1b[91my\x1b[0m")[0])
    assert '<span style="color:#0102ff">x</span><span style="color:#ff7b72">y</span>' in row


def test_page_of_a_screen_shows_its_last_state_under_the_title():
    rows = rows_after(b"first\r\n 10%|#   |", "\r 99%|███| 9/9 é 中 end".encode())
    page = maker.screen_as_html(rows, "a <title>")
    assert text_of(page)[:2] == ["first", " 99%|███| 9/9 é 中 end"]
    assert len(text_of(page)) == maker.ROWS
    assert "a &lt;title&gt;" in page
    assert f"width: {maker.WIDTH}px" in page


def test_terminal_is_recorded_with_its_size_and_colours(tmp_path, monkeypatch):
    pytest.importorskip("pty")
    monkeypatch.setenv("NO_COLOR", "1")
    code = "import os; print(*os.get_terminal_size(2), os.environ.get('NO_COLOR'), os.getcwd())"
    pieces = maker.record_terminal([sys.executable, "-c", code], tmp_path)
    words = b"".join(pieces).decode().split()
    assert words == [str(maker.COLUMNS), str(maker.ROWS), "None", os.path.realpath(tmp_path)]


def test_command_that_fails_on_the_terminal_ends_the_maker(tmp_path):
    pytest.importorskip("pty")
    with pytest.raises(SystemExit, match=r"(?s)exit code 3 of .*said why"):
        maker.record_terminal(
            [sys.executable, "-c", "print('said why'); raise SystemExit(3)"], tmp_path
        )


# --------------------------------------------------------------------------------------------------
# The moment

STEP = "10:00:0{} step {}0/90 | epoch 0.01 | loss 2.5 | lr 5e-03 | 9,000 tokens/s | ETA 9 s"
STEPS = [STEP.format(i, i) for i in range(1, 6)]
EVALUATION = "10:00:06 step 50 | val_loss 1.5 | best so far"
SAMPLES = [
    "10:00:07 sample 1 of 3 at step 50, prompt 'KING:\\n':",
    "    KING:",
    "    What news?",
    "10:00:08 sample 2 of 3 at step 50, prompt 'O ':",
    "    O my",
    "",
    "    FIRST LORD:",
    "    No news.",
]
OF_THE_TEXT = ["10:00:09 sample 3 of 3 at step 50, prompt 'A line':", "    A line", "    goes on"]
BAR = " 55%|#####     | 50/90 [00:05<00:04, 9.9step/s, loss 2.5]"
MOMENT = [*STEPS, EVALUATION, *SAMPLES, BAR]


def screen_of(lines: list[str]) -> bytes:
    return b"\x1b[2J\x1b[H" + "\r\n".join(lines).encode()


def shown(lines: list[str]) -> list[str]:
    return [maker.line_of(row) for row in maker.shown_part(rows_after(screen_of(lines)))]


def test_sample_of_the_training_text_is_not_shown():
    assert shown([*OF_THE_TEXT, *MOMENT]) == MOMENT
    assert shown([*OF_THE_TEXT[1:], *MOMENT]) == MOMENT  # its head is above the screen
    assert shown([*MOMENT[:-1], *OF_THE_TEXT]) == []


def test_whole_moment_tells_the_story():
    assert maker.story(MOMENT) == 2  # two speakers


@pytest.mark.parametrize(
    "lines",
    [
        [],
        MOMENT[:-1],
        [*STEPS[:3], EVALUATION, *SAMPLES, BAR],
        [*STEPS, *SAMPLES, BAR],
        [*STEPS, EVALUATION, BAR],
        [*STEPS, EVALUATION, *SAMPLES[:3], BAR],
        ["10:00:00 log in /home/someone/logs/x.log", *MOMENT],
    ],
    ids=["empty", "no bar", "few steps", "no evaluation", "no sample", "one sample", "a path"],
)
def test_moment_that_lacks_a_part_or_has_a_path_tells_none(lines):
    assert maker.story(lines) == 0


def test_best_moment_has_most_speakers_and_is_the_last_of_them():
    fewer = [line for line in MOMENT if "LORD" not in line]
    later = [line.replace("loss 2.5]", "loss 2.4]") for line in MOMENT]
    rows = maker.best_moment([screen_of(lines) for lines in (MOMENT, later, fewer)])
    assert [maker.line_of(row) for row in rows] == later


def test_run_without_such_a_moment_makes_no_picture():
    with pytest.raises(SystemExit, match="no moment"):
        maker.best_moment([screen_of(STEPS)])


# --------------------------------------------------------------------------------------------------
# Small files


def png_of(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="png")
    return file.getvalue()


def test_palette_keeps_plain_colours_and_clear_corners():
    picture = Image.new("RGBA", (60, 40), "#ffffff")
    picture.paste("#f8fafc", (10, 10, 50, 30))  # almost white: a card's ground
    picture.paste("#cbd5e1", (0, 0, 60, 1))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.putpixel((1, 0), (203, 213, 225, 130))
    small = Image.open(io.BytesIO(maker.small_png(png_of(picture))))
    assert small.mode == "P"
    small = small.convert("RGBA")
    assert small.getpixel((0, 0))[3] == 0
    assert small.getpixel((1, 0)) == (203, 213, 225, 128)
    assert small.getpixel((5, 5)) == (255, 255, 255, 255)
    assert small.getpixel((20, 20)) == (248, 250, 252, 255)


def test_large_picture_gets_fewer_colours_or_is_refused(monkeypatch):
    noise = Image.frombytes("RGB", (200, 200), os.urandom(120_000))
    whole = len(maker.small_png(png_of(noise)))
    monkeypatch.setattr(maker, "LARGEST", whole - 1)
    assert len(maker.small_png(png_of(noise))) < whole
    monkeypatch.setattr(maker, "LARGEST", 1000)
    with pytest.raises(SystemExit, match="more than 1,000"):
        maker.small_png(png_of(noise))


# --------------------------------------------------------------------------------------------------
# The report's picture


def test_excerpt_of_the_report_shows_no_path_and_no_text_of_training(tmp_path):
    pytest.importorskip("playwright")
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, maker.BROWSERS)), None)
    if chromium is None:
        assert not os.environ.get("CI"), "no Chromium: .ci/run installs it"
        pytest.skip("no Chromium on this machine")
    samples = [
        {"step": step, "index": index, "prompt": f"prompt {index}", "text": f" at {step}"}
        for step in (1, 2, 3)
        for index in (1, 2)
    ]
    run = made_runs.write(
        tmp_path,
        made_runs.start(),
        made_runs.end("done", 3, resume_command="/home/someone/python --resume_from x"),
        rows=made_runs.json_lines([{"step": 1, "train_loss": 2.0}, {"step": 3, "train_loss": 1.0}]),
        samples=[sample | {"time": "", "seed": 1} for sample in samples],
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": maker.WIDTH, "height": 600})
        page.goto(write_report(run).as_uri())
        page.add_style_tag(content=maker.REPORT_EXCERPT)
        words = page.locator("body").inner_text()
        browser.close()
    assert run.name in words
    for part in ("Loss", "prompt 1 at 1", "prompt 1 at 3"):
        assert part in words
    for part in ("someone", "prompt 2", "at 2", "Speed", "Events", "Configuration", "threads"):
        assert part not in words


def test_help_names_both_options(capsys):
    with pytest.raises(SystemExit) as caught:
        maker.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--output FOLDER" in text
    assert "--run FOLDER" in text


def test_folder_of_the_run_looks_like_a_checkout(tmp_path):
    maker.prepare_folder(tmp_path)
    assert (tmp_path / maker.TRAIN[0]).is_file()
    assert (tmp_path / Path(maker.TRAIN[2])).is_file()
