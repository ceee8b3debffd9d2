"""Check that a zip file has the structure of torch.save's, before anything in it is read."""

import os
import re
import zipfile
import zlib
from typing import BinaryIO

# Bytes of a zip's last record without its comment; its last two bytes are the comment's length.
END_OF_ZIP = 22
# In zips over 4 GB: bytes of the record before it, which tells where ZIP64_RECORD is ...
ZIP64_LOCATOR = 20
# ... and bytes of the record before that, with the sizes that do not fit into 4 bytes.
ZIP64_RECORD = 56
LONGEST_COMMENT = 1 << 16
# more than any checkpoint has; millions of entries would fill the memory
MAX_ENTRIES = 50_000
MAX_ENTRY_NAME = 256
NAME_SHOWN = 80  # characters of an entry's name in a message
ENTRY = re.compile(
    r"(?!\.\.?/)[^/\\]+/"
    r"(data\.pkl|version|byteorder|data/\d+|\.data/[\w.]+|\.format_version|\.storage_alignment)",
    re.ASCII,
)
# errors that zipfile raises for crafted bytes
ZIP_ERRORS = (
    zipfile.BadZipFile,
    OSError,
    ValueError,
    NotImplementedError,
    EOFError,
    RuntimeError,
    zlib.error,
)


def odd_entries(file: BinaryIO, checksums: bool = False) -> str | None:
    """Return what is unusual about the zip's structure; None: nothing.

    Afterwards the file's position is at its start.

    checksums: also compare each entry with its checksum.
    """
    size = file.seek(0, os.SEEK_END)
    try:
        if _has_too_many_entries(file):
            return "a zip file with more entries than any checkpoint has"
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            problem = _odd_entry(entries, size)
            if problem is not None:
                return problem
            # last: it reads all of the file, and would unpack what is compressed
            damaged = archive.testzip() if checksums else None
    except ZIP_ERRORS as error:
        return f"not a readable zip file ({error})"
    finally:
        file.seek(0)
    if damaged is not None:
        return f"damaged: the checksum of {damaged} does not match"
    return None


def _odd_entry(entries: list[zipfile.ZipInfo], size: int) -> str | None:
    """Return what is unusual about a zip's list of entries; None: nothing. Reads no entry.

    size: bytes of the zip.
    """
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        return "a zip file with entries of the same name"
    for entry in entries:
        if not ENTRY.fullmatch(entry.filename) or not _is_stored(entry):
            name = entry.filename[:NAME_SHOWN]
            return f"a zip file with an entry that no checkpoint has ({name!r})"
    if sum(entry.file_size for entry in entries) > size:
        return "a zip file whose entries overlap"
    return None


def _is_stored(entry: zipfile.ZipInfo) -> bool:
    """Return whether an entry is not compressed."""
    return entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size


def _has_too_many_entries(file: BinaryIO) -> bool:
    """Return whether the zip's list of entries is too long for a checkpoint.

    It is checked first because zipfile reads the whole list into memory.
    Source: APPNOTE.TXT, 4.3.14 to 4.3.16.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - ZIP64_RECORD - ZIP64_LOCATOR - END_OF_ZIP - LONGEST_COMMENT))
    tail = file.read()
    # like zipfile, look for the last record at the end, then before a comment
    end = len(tail) - END_OF_ZIP
    if not tail[end:].startswith(b"PK\x05\x06") or not tail.endswith(b"\0\0"):
        end = tail.rfind(b"PK\x05\x06")
    list_size = int.from_bytes(tail[end + 12 : end + 16], "little")
    record = end - ZIP64_LOCATOR - ZIP64_RECORD
    if record >= 0 and tail[end - ZIP64_LOCATOR :].startswith(b"PK\x06\x07"):
        list_size = int.from_bytes(tail[record + 40 : record + 48], "little")
    return list_size > MAX_ENTRIES * MAX_ENTRY_NAME
