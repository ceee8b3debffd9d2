"""Who speaks in a text, counted once: the token cache remembers it beside the text's ids."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from zlib import crc32

from chatgot.atomic_file import atomic_file
from chatgot.sampling.speakers import Speaker

SPEAKERS_FORMAT = 1  # another one whenever `count_speakers` counts in another way


def remembered_speakers(
    cache: Path | None, n_train: int, count: Callable[[], list[Speaker]]
) -> list[Speaker]:
    """Return what was counted before in the first `n_train` ids of a text; else count, and keep it.

    Best effort: a file that cannot be read or is damaged is written again; if it cannot be
    written, the next run counts again.

    cache: the text's files in the token cache, without their suffixes; None: it has none.
    """
    if cache is None:
        return count()
    path = cache.with_name(f"{cache.name}-{n_train}.speakers")
    known = _read(path)
    if known is not None:
        return known
    speakers = count()
    with suppress(OSError), atomic_file(path) as file:
        file.write(_packed(speakers))
    return speakers


def _packed(speakers: list[Speaker]) -> bytes:
    """Return the content of a file: its format and a checksum, a line feed, the speakers."""
    content = json.dumps([asdict(speaker) for speaker in speakers]).encode()
    return f"{SPEAKERS_FORMAT} {crc32(content)}\n".encode() + content


def _read(path: Path) -> list[Speaker] | None:
    """Return the speakers in a file; None: there is none, or it is not as it was written."""
    try:
        head, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if head != f"{SPEAKERS_FORMAT} {crc32(content)}".encode():
        return None
    try:
        return [Speaker(**speaker) for speaker in json.loads(content)]
    except (TypeError, ValueError):  # of a version with other fields
        return None
