"""Whether a zip file is built as torch.save builds one; looked at before anything in it is read."""

import os
import re
import zipfile
import zlib
from typing import BinaryIO

END_OF_ZIP = 22  # bytes of a zip's last record without its comment; the comment's length stands in the last two
ZIP64_LOCATOR, ZIP64_RECORD = 20, 56  # bytes of the two records before it in zips over 4 GB
MAX_ENTRIES, MAX_ENTRY_NAME = (
    50_000,
    256,
)  # more than any checkpoint has; a list of millions would fill the memory
ENTRY = re.compile(
    r"(?!\.\.?/)[^/\\]+/(data\.pkl|version|byteorder|data/\d+|\.data/[\w.]+|\.format_version|\.storage_alignment)",
    re.ASCII,
)


def odd_entries(file: BinaryIO, checksums: bool = False) -> str | None:
    """Return what is unusual about the zip's structure (and wrong by its own checksums), or None."""
    size = file.seek(0, os.SEEK_END)
    try:
        if _too_many_entries(file):
            return "a zip file with more entries than any checkpoint has"
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            bad = archive.testzip() if checksums else None
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        NotImplementedError,
        EOFError,
        RuntimeError,
        zlib.error,
    ) as error:
        return f"not a readable zip file ({error})"
    finally:
        file.seek(0)
    if bad is not None:
        return f"damaged: the checksum of {bad} does not match"
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        return "a zip file with entries of the same name"
    for entry in entries:
        stored = (
            entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        )
        if not ENTRY.fullmatch(entry.filename) or not stored:
            return f"a zip file with an entry that no checkpoint has ({entry.filename[:80]!r})"
    if sum(entry.file_size for entry in entries) > size:
        return "a zip file whose entries overlap"
    return None


def _too_many_entries(file: BinaryIO) -> bool:
    """Return whether the zip's list of entries is longer than a checkpoint's; zipfile would read it into memory."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - ZIP64_RECORD - ZIP64_LOCATOR - END_OF_ZIP - (1 << 16)))
    tail = file.read()
    end = len(tail) - END_OF_ZIP  # where zipfile looks for it, too: at the end, or before a comment
    if not tail[end:].startswith(b"PK\x05\x06") or not tail.endswith(b"\0\0"):
        end = tail.rfind(b"PK\x05\x06")
    length = int.from_bytes(tail[end + 12 : end + 16], "little")
    record = end - ZIP64_LOCATOR - ZIP64_RECORD
    if record >= 0 and tail[end - ZIP64_LOCATOR :].startswith(b"PK\x06\x07"):
        length = int.from_bytes(tail[record + 40 : record + 48], "little")
    return length > MAX_ENTRIES * MAX_ENTRY_NAME
