"""Which texts have come before? Digests on disk, so that memory does not grow with the documents.

16 bytes of a SHA-256 tell texts apart: among 10^12 documents, two different ones are taken for the
same with a probability of 10^-15. On disk a document takes about 30 bytes. SQLite finds a digest by
a B-tree: while that is in the system's cache, some 100,000 documents a second go through; when it
is far larger than memory, each one waits for the disk. So shards of more than some 10^9 documents
are better made of texts that were deduplicated before.
"""

import re
import sqlite3
import unicodedata
from hashlib import sha256
from pathlib import Path

from chatgot.errors import StorageError

DIGEST_BYTES = 16
CACHE_KIB = 1 << 18  # of the B-tree, in memory: 256 MiB
ADDED_AT_ONCE = 10_000  # documents of a transaction
_BLANK = re.compile(r"\s+")


def text_digest(text: str) -> bytes:
    """Return what tells texts apart: neither white space nor Unicode's forms of a letter count."""
    plain = text if text.isascii() else unicodedata.normalize("NFC", text)
    return sha256(_BLANK.sub(" ", plain).strip().encode()).digest()[:DIGEST_BYTES]


class SeenTexts:
    """The digests of texts. folder: for the file, which is of no use later.

    Raises: StorageError, from all that writes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = sqlite3.connect(folder / "seen.sqlite3", isolation_level=None)
        for line in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            f"PRAGMA cache_size=-{CACHE_KIB}",
            "CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID",
            "BEGIN",
        ):
            self._database.execute(line)
        self._added = 0

    def is_new(self, digest: bytes) -> bool:
        """Return whether a digest comes for the first time; it is known from now on."""
        try:
            cursor = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,))
            self._added += 1
            if self._added % ADDED_AT_ONCE == 0:
                self._database.execute("COMMIT")
                self._database.execute("BEGIN")
        except sqlite3.Error as error:
            raise StorageError(
                f"{self._folder}: the digests of the documents cannot be kept: {error}; "
                "make room there, or set TMPDIR to another disk"
            ) from error
        return cursor.rowcount == 1

    def close(self) -> None:
        self._database.close()
