"""Make the README's two pictures: docs/pictures/terminal.png and docs/pictures/report.png.

    python docs/pictures/make_pictures.py
    python docs/pictures/make_pictures.py --output FOLDER        # not into docs/pictures
    python docs/pictures/make_pictures.py --run FOLDER           # only report.png, of this run

It trains as a reader of the README does, with configs/models/chatgot_quick.yaml on the default
text, in a pseudo-terminal and a temporary folder: minutes, and longer where the machine is busy,
which the speed in the picture then shows. What the terminal received is played again afterwards,
and the last moment that tells the story becomes terminal.png: step lines, an evaluation, samples
that read like a play, the bar. The first part of the run's report becomes report.png.

Neither picture shows a path of this machine, or text of the training data: the last prompt, which
is taken from the validation text, is left out of both.

It needs requirements-dev.txt (pyte emulates the screen, playwright drives the browser), Chromium,
and fonts that it finds: on Debian the packages chromium and fonts-dejavu-core are enough. It is a
maker for this repository, not a command of ChatGoT, and runs on Linux and macOS.
"""

import argparse
import html
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ("scripts/train_with_samples.py", "--config", "configs/models/chatgot_quick.yaml")
TEXT = "data/shakespeare.txt"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
RUNS = "logs/tensorboard"
ROWS = 36
COLUMNS = 126  # a step's line fits
WIDTH = 900  # CSS pixels: the width of a README on GitHub
PIXELS_PER_CSS_PIXEL = 2  # sharp on screens of high density
LARGEST = 150_000  # bytes of one picture
COLOURS = (240, 120, 60, 30, 15)  # of its palette, as many as fit into LARGEST
CORNER_ALPHAS = (0, 64, 128, 192)
FOREIGN = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TQDM_DISABLE")  # settings of the maker

# --------------------------------------------------------------------------------------------------
# What the terminal showed


class Cell(Protocol):
    """One character of a screen, as pyte has it; a wide one is followed by an empty one."""

    @property
    def data(self) -> str:
        """The character."""

    @property
    def fg(self) -> str:
        """Its colour: a name, six hexadecimal digits or "default"."""

    @property
    def bg(self) -> str:
        """The colour behind it."""

    @property
    def bold(self) -> bool:
        """Whether it is bold."""

    @property
    def reverse(self) -> bool:
        """Whether the two colours are exchanged."""


Row = list[Cell]


def record_terminal(command: Sequence[str], folder: Path) -> list[bytes]:
    """Run a command in `folder` on a terminal of its own; return what that received, in pieces.

    Raises: SystemExit when the command fails, with the end of what it said.
    """
    # not on Windows, where the rest of this file can be tested
    import pty
    import termios

    terminal, side_of_the_program = pty.openpty()
    termios.tcsetwinsize(side_of_the_program, (ROWS, COLUMNS))
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment |= {"TERM": "xterm-256color", "PYTHONUTF8": "1"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=side_of_the_program,
        stdout=side_of_the_program,
        stderr=side_of_the_program,
    )
    os.close(side_of_the_program)
    pieces = []
    try:
        while piece := _read(terminal):
            pieces.append(piece)
        code = process.wait()
    except BaseException:  # Ctrl+C: the training ends too
        process.terminate()
        process.wait()
        raise
    finally:
        os.close(terminal)
    if code != 0:
        said = b"".join(pieces[-20:]).decode(errors="replace")
        sys.exit(f"exit code {code} of {' '.join(command)}\n{said}")
    return pieces


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO on Linux: the program has ended
        return b""


def screens(pieces: Iterable[bytes]) -> Iterator[list[Row]]:
    """Yield the rows of the screen after each piece that the terminal received."""
    import pyte

    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    for piece in pieces:
        stream.feed(piece)
        yield [[screen.buffer[y][x] for x in range(COLUMNS)] for y in range(ROWS)]


def line_of(row: Row) -> str:
    return "".join(cell.data for cell in row).rstrip()


# --------------------------------------------------------------------------------------------------
# The moment

BEGIN_OF_RECORD = re.compile(r"\d\d:\d\d:\d\d ")
STEP_LINE = re.compile(r"\d\d:\d\d:\d\d step \d+/\d+ \| epoch .* ETA \d")
EVALUATION = re.compile(r"\d\d:\d\d:\d\d step \d+ \| val_loss ")
SAMPLE = re.compile(r"\d\d:\d\d:\d\d sample (\d+) of (\d+) at step ")
BAR = re.compile(r" *\d+%\|.*\d+/\d+ \[")
SPEAKER = re.compile(r"    [A-Z][A-Z ]+:")
ABSOLUTE_PATH = re.compile(r"(?<![\w.])/\w[\w.-]*/")
FEWEST_STEP_LINES = 4
ENOUGH_SPEAKERS = 4


def shown_part(rows: list[Row]) -> list[Row]:
    """Return the screen without what must not be in a picture, and without empty rows at its end.

    A sample of the last prompt, which is a line of the training data, goes with all above it; so
    does the end of a record whose begin is above the screen.
    """
    lines = [line_of(row) for row in rows]
    first = 0
    hidden = True
    for i, line in enumerate(lines):
        if BEGIN_OF_RECORD.match(line):
            sample = SAMPLE.match(line)
            hidden = sample is not None and sample[1] == sample[2]
        if hidden:
            first = i + 1
    last = max((i for i, line in enumerate(lines) if line), default=-1)
    return rows[first : last + 1]


def story(lines: list[str]) -> int:
    """Return how well a screen tells the story of a run: 0, not at all, or more.

    It has to have step lines, an evaluation, a sample of each prompt but the last, and the bar
    below all that; a path of this machine spoils it. The more speakers the samples have, the
    better.
    """
    if not lines or not BAR.match(lines[-1]):
        return 0
    steps = [line for line in lines if STEP_LINE.match(line)]
    evaluations = [line for line in lines if EVALUATION.match(line)]
    samples = [match for match in map(SAMPLE.match, lines) if match]
    if len(steps) < FEWEST_STEP_LINES or not evaluations or not samples:
        return 0
    if len(samples) != int(samples[-1][2]) - 1:
        return 0
    if any(ABSOLUTE_PATH.search(line) for line in lines):
        return 0
    return min(ENOUGH_SPEAKERS, sum(1 for line in lines if SPEAKER.fullmatch(line)))


def best_moment(pieces: Iterable[bytes]) -> list[Row]:
    """Return the screen that tells the story best, the last one of several.

    Raises: SystemExit when no screen tells it.
    """
    best: list[Row] = []
    best_score = 1
    for rows in screens(pieces):
        shown = shown_part(rows)
        score = story([line_of(row) for row in shown])
        if score >= best_score:
            best = shown
            best_score = score
    if not best:
        sys.exit(
            "no moment of the run has step lines, an evaluation, samples and the bar on one screen"
        )
    return best


# --------------------------------------------------------------------------------------------------
# A screen as HTML

INK = "#d6dde6"
GROUND = "#11161d"
ANSI = {  # pyte's names; its "brown" is yellow
    "black": "#6b7684",
    "red": "#ff7b72",
    "green": "#56d364",
    "brown": "#e3b341",
    "blue": "#79c0ff",
    "magenta": "#d2a8ff",
    "cyan": "#56d4dd",
    "white": INK,
}
HEX = re.compile(r"[0-9a-fA-F]{6}")
TERMINAL_PAGE = """<!doctype html><meta charset="utf-8"><style>
* { box-sizing: border-box; }
body { margin: 0; width: %(width)dpx; background: transparent; color: %(ink)s;
  font-family: "DejaVu Sans Mono", ui-monospace, Menlo, Consolas, monospace; }
main { border: 1px solid #3d4652; border-radius: 10px; overflow: hidden; background: %(ground)s; }
header { position: relative; height: 32px; background: #1c232d; border-bottom: 1px solid #2c3440;
  color: #aab4c0; font-size: 12px; line-height: 32px; text-align: center;
  white-space: nowrap; overflow: hidden; }
header i { position: absolute; top: 10px; width: 11px; height: 11px; border-radius: 50%%; }
pre { margin: 0; padding: 12px 14px 13px; font: inherit; font-size: 11.4px; line-height: 16px; }
div { height: 16px; white-space: pre; }
</style>
<main><header><i style="left: 14px; background: #ff5f57"></i>
<i style="left: 33px; background: #febc2e"></i><i style="left: 52px; background: #28c840"></i>
%(title)s</header><pre>%(rows)s</pre></main>
"""


@dataclass(frozen=True)
class Look:
    """What neighbouring characters share."""

    ink: str
    ground: str
    bold: bool


def colour(name: str, default: str) -> str:
    """Return the CSS colour of a terminal's colour; one without a known name is the default."""
    if HEX.fullmatch(name):
        return f"#{name}"
    return ANSI.get(name.removeprefix("bright"), default)


def look_of(cell: Cell) -> Look:
    ink = colour(cell.fg, INK)
    ground = colour(cell.bg, GROUND)
    if cell.reverse:
        return Look(ground, ink, cell.bold)
    return Look(ink, ground, cell.bold)


def row_as_html(row: Row) -> str:
    """Return one row; characters of the same look are in one span, and none is markup."""
    parts: list[tuple[Look, str]] = []
    for cell in row:
        look = look_of(cell)
        if parts and parts[-1][0] == look:
            parts[-1] = (look, parts[-1][1] + cell.data)
        else:
            parts.append((look, cell.data))
    return f"<div>{''.join(_span(look, text) for look, text in parts)}</div>"


def _span(look: Look, text: str) -> str:
    text = html.escape(text)
    style = []
    if look.ink != INK:
        style.append(f"color:{look.ink}")
    if look.ground != GROUND:
        style.append(f"background:{look.ground}")
    if look.bold:
        style.append("font-weight:700")
    return f'<span style="{";".join(style)}">{text}</span>' if style else text


def screen_as_html(rows: list[Row], title: str) -> str:
    """Return a page that shows a screen in a window with a title."""
    return TERMINAL_PAGE % {
        "width": WIDTH,
        "ground": GROUND,
        "ink": INK,
        "title": html.escape(title),
        "rows": "".join(row_as_html(row) for row in rows),
    }


# --------------------------------------------------------------------------------------------------
# Pages as small pictures

# What report.png shows: the numbers, the loss, the first and the last sample of the first prompt.
# The command that resumes the run has a path, and the last prompt is a line of the training data.
REPORT_EXCERPT = """
body { background: transparent; }
main { padding: 22px 22px 24px; background: var(--ground); border: 1px solid #cbd5e1;
  border-radius: 10px; }
main > .about, main > .label, main > .command { display: none; }
section { display: none; }
#loss, #samples { display: block; }
section > h3, section > .samples:nth-of-type(n+2) { display: none; }
.samples.samples { grid-template-columns: 1fr 1fr; }
figure:not(:first-child):not(:last-child) { display: none; }
"""


def picture_of(browser: "Browser", address: str, style: str = "") -> bytes:
    """Return a screenshot of a page, WIDTH wide and as high as it is, with a transparent ground."""
    page = browser.new_page(
        viewport={"width": WIDTH, "height": 600},
        device_scale_factor=PIXELS_PER_CSS_PIXEL,
        color_scheme="light",
    )
    page.goto(address)
    if style:
        page.add_style_tag(content=style)
    png = page.locator("body").screenshot(omit_background=True)
    page.close()
    return png


def small_png(png: bytes) -> bytes:
    """Return a picture with a palette: as many colours as fit into LARGEST.

    Raises: SystemExit when even the fewest colours do not.
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    for colours in COLOURS:
        content = _with_palette(picture, colours)
        if len(content) < LARGEST:
            return content
    sys.exit(
        f"the picture has {len(content):,} bytes with {colours} colours, more than {LARGEST:,}"
    )


def _with_palette(picture: "Image.Image", colours: int) -> bytes:
    """Return a PNG whose last entries are for round corners: the frame's colour, ever less clear.

    Pillow's own palette for transparent pictures makes one colour of white and almost white.
    """
    import numpy as np
    from PIL import Image

    frame = np.asarray(picture)[0, picture.width // 2, :3].tolist()
    few = picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    palette = (few.getpalette() or [])[: 3 * colours]
    palette += [0] * (3 * colours - len(palette)) + frame * len(CORNER_ALPHAS)
    indices = np.array(few)
    alphas = np.asarray(picture)[:, :, 3]
    for i, alpha in enumerate(CORNER_ALPHAS):
        indices[(alphas < 255) & (alphas >= alpha)] = colours + i
    whole = Image.fromarray(indices).convert("P")
    whole.putpalette(palette)
    file = io.BytesIO()
    transparency = bytes([255] * colours + list(CORNER_ALPHAS))
    whole.save(file, format="png", optimize=True, transparency=transparency)
    return file.getvalue()


# --------------------------------------------------------------------------------------------------
# The run


def prepare_folder(folder: Path) -> None:
    """Make `folder` look like a checkout, with the text where it has been fetched already."""
    for name in ("scripts", "configs"):
        (folder / name).symlink_to(ROOT / name)
    if (ROOT / TEXT).is_file():
        (folder / TEXT).parent.mkdir()
        shutil.copyfile(ROOT / TEXT, folder / TEXT)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the README's two pictures.")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).resolve().parent,
        metavar="FOLDER",
        help="where the pictures go; default: docs/pictures",
    )
    parser.add_argument(
        "--run",
        type=Path,
        metavar="FOLDER",
        help="make report.png alone, of this run: a folder of logs/tensorboard",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Make the pictures; return the exit code."""
    args = parse_arguments(argv)
    found = [path for path in map(shutil.which, BROWSERS) if path]
    if not found:
        sys.exit("there is no Chromium; on Debian it is the package chromium")
    args.output.mkdir(parents=True, exist_ok=True)
    pages = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = args.run
        if run is None:
            prepare_folder(folder)
            pieces = record_terminal([sys.executable, *TRAIN], folder)
            (folder / "terminal.html").write_text(
                screen_as_html(best_moment(pieces), " ".join(("python", *TRAIN))), encoding="utf-8"
            )
            pages["terminal.png"] = (folder / "terminal.html", "")
            (run,) = (folder / RUNS).iterdir()
        pages["report.png"] = (run.resolve() / "report.html", REPORT_EXCERPT)
        write_pictures(found[0], pages, args.output)
    return 0


def write_pictures(chromium: str, pages: dict[str, tuple[Path, str]], output: Path) -> None:
    """Write one picture of each page, with its additional style, and say how large it is."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # root has no sandbox
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (page, style) in pages.items():
            content = small_png(picture_of(browser, page.as_uri(), style))
            (output / name).write_bytes(content)
            sys.stdout.write(f"{output / name}: {len(content):,} bytes\n")
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
