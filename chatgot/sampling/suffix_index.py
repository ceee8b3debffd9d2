"""Where else does a piece of a text occur? A suffix array over the text answers at once.

The array sorts all places of the text by what follows them, so that a piece is found by halving.
It is made once for each text: the token cache remembers it.
Source: U. Manber and G. Myers, Suffix arrays, SIAM Journal on Computing 22 (1993).
"""

import mmap
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from chatgot.atomic_file import atomic_file
from chatgot.data.token_cache import Tokens
from chatgot.data.vocabulary import Ids, Vocabulary
from chatgot.logs.waiting import waiting

MOST_BYTES = 100_000_000  # of a text; of a longer one, blocks of it are looked at
BLOCK_TOKENS = 1 << 18  # of a text that is too long: blocks so long, evenly spread
DOCUMENT_END = "\0"  # no sample has it, so no piece reaches over the end of a document
FIRST_STEP = 64  # bytes that are compared at a time, at first
BYTES_OF_PLACE = 4  # in the suffix array
INDEX_FORMAT = 1

Places = NDArray[np.int32]


class SuffixIndex:
    """A text and the order of its suffixes.

    text: in UTF-8.
    places: (bytes of the text,), where each suffix begins, in the order of the suffixes.
    share: of the whole training text that the text is, 0 to 1; below 1 it was too long.
    """

    def __init__(self, text: bytes, places: Places, share: float = 1.0) -> None:
        self.text = text
        self.places = places
        self.share = share

    @classmethod
    def of_text(cls, text: bytes, share: float = 1.0) -> "SuffixIndex":
        """Sort the suffixes of a text; takes about 0.05 s and 5 MB of memory for each megabyte."""
        from pydivsufsort import divsufsort

        places = divsufsort(text).astype(np.int32, copy=False) if text else np.zeros(0, np.int32)
        return cls(text, places, share)

    def find(self, piece: bytes) -> int | None:
        """Return a place at which a piece occurs in the text; None: it does not.

        It is the last one in order, as the first may be that of the text's own end.
        """
        from pydivsufsort import sa_search

        if not self.text:
            return None
        count, first = sa_search(self.text, self.places, piece)
        return int(self.places[first + count - 1]) if count else None

    def common_length(self, place: int, data: bytes, start: int, known: int) -> int:
        """Return how many bytes from `start` of some data on are those from a place of the text on.

        known: how many of them are known to be.
        """
        length = known
        step = FIRST_STEP
        while step:
            here = data[start + length : start + length + step]
            if len(here) == step and here == self.text[place + length : place + length + step]:
                length += step
                step *= 2
            else:
                step //= 2
        return length


def index_of(tokens: Tokens, n_train: int, most_bytes: int = MOST_BYTES) -> SuffixIndex:
    """Return the index of the training part of a text, made or remembered.

    Of a text of more than `most_bytes`, evenly spread blocks are taken. Side effect: the index is
    written into the token cache, best effort: it takes 5 bytes for each byte of the text.
    """
    text, share = _training_bytes(tokens.ids[:n_train], tokens.vocabulary, most_bytes)
    if tokens.cache is None:
        return _made(text, share)
    path = tokens.cache.with_name(f"{tokens.cache.name}-{n_train}.suffixes")
    places = _read(path, text)
    if places is not None:
        return SuffixIndex(text, places, share)
    index = _made(text, share)
    with suppress(OSError), atomic_file(path) as file:
        file.write(_head(index.places, text))
        file.write(index.places.tobytes())
    return index


def _made(text: bytes, share: float) -> SuffixIndex:
    with waiting("indexing the training text, to see what is copied from it"):
        return SuffixIndex.of_text(text, share)


def _training_bytes(ids: Ids, vocabulary: Vocabulary, most_bytes: int) -> tuple[bytes, float]:
    """Return the text of some ids in UTF-8, or of blocks of it; and which share that is."""
    if len(ids) <= most_bytes // _longest_token(vocabulary):  # so few that nothing is to be cut
        return _bytes_of(ids, vocabulary), 1.0
    some = _bytes_of(ids[:BLOCK_TOKENS], vocabulary)
    all_bytes = len(ids) * len(some) / len(ids[:BLOCK_TOKENS])  # about
    if all_bytes <= most_bytes:
        text = _bytes_of(ids, vocabulary)
        if len(text) <= most_bytes:
            return text, 1.0
    blocks = max(1, int(most_bytes / max(1, len(some))))
    starts = np.linspace(0, len(ids) - BLOCK_TOKENS, blocks).astype(np.int64)
    texts = [_bytes_of(ids[start : start + BLOCK_TOKENS], vocabulary) for start in starts]
    text = DOCUMENT_END.encode().join(texts)[:most_bytes]
    return text, min(1.0, len(text) / all_bytes)


def _bytes_of(ids: Ids, vocabulary: Vocabulary) -> bytes:
    chunks = vocabulary.chunks_of_text(ids, DOCUMENT_END)
    return b"".join(chunk.encode("utf-8", "surrogatepass") for chunk in chunks)


def _longest_token(vocabulary: Vocabulary) -> int:
    return max(len(vocabulary.bytes_of(token)) for token in range(len(vocabulary)))


def _head(places: Places, text: bytes) -> bytes:
    """Return the first line of a file: its format, and checksums of the order and the text."""
    return f"{INDEX_FORMAT} {crc32(places.tobytes())} {crc32(text)}\n".encode()


def _read(path: Path, text: bytes) -> Places | None:
    """Return the order of a text's suffixes from a file; None: there is none, or it is damaged."""
    try:
        with path.open("rb") as file:
            head = file.readline(64)
            size = len(head) + BYTES_OF_PLACE * len(text)
            if not text or file.seek(0, 2) != size:
                return None
            # copied where it is written to, which it never is: the library takes no read-only one
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):
        return None
    places = np.frombuffer(memory, dtype=np.int32, offset=len(head))
    return places if head == _head(places, text) else None
