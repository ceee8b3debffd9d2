"""Finds what is in a text twice: documents, what an episode recalls of others, long passages.

Memory is bounded: so many lines, passages and documents are remembered, and no later ones.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from chatgot.data.near_duplicates import BLOCK, HASH_BYTES, NearDuplicates, Signing
from chatgot.data.preparation.cleaning.options import MOST_PAIRS, CleaningFindings, Repeat
from chatgot.data.preparation.cleaning.recaps import Opening, key_of, keys_of, units_of
from chatgot.data.preparation.pieces import (
    DocumentDropped,
    DocumentStart,
    Passage,
    Piece,
    PlainText,
    Speech,
)

MOST_LINES = 1_000_000  # about 70 MB of hashes
MOST_PASSAGES = 300_000  # 20 MB
MOST_DOCUMENTS = 300_000  # whose exact text is known: 40 MB
MOST_SIGNATURES = 50_000  # of documents, to find near-duplicates: 50 MB at most
LONG_PASSAGE = 200  # characters; a shorter one may well be said twice
LEAST_EXACT = 20  # characters of a document that repeats another
LEAST_NEAR = 200  # characters of one that nearly does
LONG_PARAGRAPH = 1 << 16  # characters; a longer one is not compared
LONGEST_TITLE = 80
RECAPS = "recaps"
PASSAGES = "repeated long passages"
EXACT = "duplicate documents"
NEAR = "near-duplicate documents"


def without_repeats(
    pieces: Iterable[Piece], findings: CleaningFindings, drop: bool
) -> Iterator[Piece]:
    """Yield the pieces; count what is there twice, and leave it out if that is asked for."""
    search = _Search(findings, drop)
    for piece in pieces:
        if isinstance(piece, DocumentStart):
            yield from search.start_document(piece.title)
            yield piece
        elif search.is_new(piece):
            yield piece
        else:
            yield from search.take(piece)
    yield from search.start_document("")
    search.say_limits()


class _Search:
    """What is remembered of earlier documents, and the document at hand."""

    def __init__(self, findings: CleaningFindings, drop: bool) -> None:
        self._findings = findings
        self._drop = drop
        self._lines: set[int] = set()
        self._passages: set[int] = set()
        self._exact: dict[bytes, str] = {}
        self._near = NearDuplicates[str]()
        self._documents = 0
        self._begin("")

    def _begin(self, title: str) -> None:
        self._title = title[:LONGEST_TITLE]
        self._digest = hashlib.blake2b(digest_size=HASH_BYTES)
        self._signing = Signing() if len(self._near) < MOST_SIGNATURES else None
        self._parts: list[str] = []  # of its text, not yet in hash and signature
        self._said: list[str] = []  # the same, as lines that are compared
        self._unread = 0  # their characters
        self._length = 0  # of those that are
        self._new_lines: set[int] = set()
        self._counts: Counter[str] = Counter()
        self._opening = Opening(self._lines) if self._lines else None
        self._paragraph = ""  # of a plain text, not yet whole

    def is_new(self, piece: Piece) -> bool:
        """Return whether a piece can go on at once: a short one after the opening, as most are."""
        self._read(piece)
        return (
            self._opening is None
            and isinstance(piece, Speech | Passage)
            and len(piece.text) < LONG_PASSAGE
            and not self._paragraph
        )

    def take(self, piece: Piece) -> Iterator[Piece]:
        """Yield what of a piece, and of those held before it, can go on; `is_new` comes first."""
        if self._opening is None:
            yield from self._without_passages(piece)
            return
        rest: list[Piece] = []
        for unit in units_of(piece):
            if self._opening is None:
                rest.append(unit.piece)
            elif self._opening.take(unit):
                rest = self._after_recap(self._opening)
                self._opening = None
        for part in _joined(rest):
            yield from self._without_passages(part)

    def start_document(self, title: str) -> Iterator[Piece]:
        """Yield what is left of the document at hand, and whether it is dropped."""
        if self._opening is not None:
            for part in _joined(self._opening.all()):
                yield from self._without_passages(part)
        yield from self._end_of_plain_text()
        self._read_parts()
        if self._length:
            self._documents += 1
            if self._is_repeat():
                if self._drop:
                    yield DocumentDropped()
            else:
                self._findings.repeated += self._counts
                if self._drop:
                    self._findings.left_out += self._counts
            self._lines |= self._new_lines
        self._begin(title)

    def say_limits(self) -> None:
        """Remark what was not compared, as too much was remembered."""
        limits = [
            (len(self._lines), MOST_LINES, RECAPS, "lines"),
            (len(self._passages), MOST_PASSAGES, PASSAGES, "long passages"),
            (len(self._exact), MOST_DOCUMENTS, EXACT, "documents"),
            (len(self._near), MOST_SIGNATURES, NEAR, "documents"),
        ]
        for size, limit, what, among in limits:
            if size >= limit:
                self._findings.remark(
                    f"{what} were looked for among the first {limit:,} {among} only"
                )

    def _read(self, piece: Piece) -> None:
        """Add a piece to what is known of the document at hand."""
        if isinstance(piece, Speech):
            text = piece.text
            self._parts.append(f"{piece.name}:\n{text}\n\n")
            self._said.append(text.replace("\n", " "))
        elif isinstance(piece, Passage):
            text = piece.text
            self._parts.append(f"{text}\n\n")
            self._said.append(text.replace("\n", " "))
        elif isinstance(piece, PlainText):
            text = piece.text
            self._parts.append(text)
            self._said.append(text)
        else:
            return
        self._unread += len(text)
        if self._unread >= BLOCK:
            self._read_parts()

    def _read_parts(self) -> None:
        """Add the text that was gathered to hash and signature, and what it says to the lines."""
        text = "".join(self._parts)
        self._digest.update(text.encode("utf-8", "surrogatepass"))
        if self._signing is not None:
            self._signing.add(text)
        self._length += len(text)
        if len(self._lines) + len(self._new_lines) < MOST_LINES:
            self._new_lines.update(keys_of("\n".join(self._said)))
        self._parts = []
        self._said = []
        self._unread = 0

    def _after_recap(self, opening: Opening) -> list[Piece]:
        """Return the beginning of a document, without its recap if that is to be dropped."""
        recap, after = opening.parts()
        if recap:
            self._counts[RECAPS] += 1
        return after if self._drop else [*recap, *after]

    def _is_repeat(self) -> bool:
        """Return whether an earlier document says the same, and remember this one."""
        title = self._title or f"document {self._documents:,}"
        if self._length < LEAST_EXACT:
            return False
        digest = self._digest.digest()
        earlier = self._exact.get(digest)
        kind = EXACT
        if earlier is None:
            if len(self._exact) < MOST_DOCUMENTS:
                self._exact[digest] = title
            if self._length >= LEAST_NEAR and self._signing is not None:
                earlier = self._near.add(title, self._signing.signature())
                kind = NEAR
        if earlier is None:
            return False
        self._findings.repeated[kind] += 1
        if self._drop:
            self._findings.left_out[kind] += 1
        if len(self._findings.repeats) < MOST_PAIRS:
            self._findings.repeats.append(Repeat(title, earlier, kind == EXACT))
        return True

    # ----------------------------------------------------------------------------------------------
    # Long passages

    def _without_passages(self, piece: Piece) -> Iterator[Piece]:
        """Yield a piece, if it is no long passage that was there before, or is to stay."""
        if isinstance(piece, PlainText):
            yield from self._whole_paragraphs(piece.text)
            return
        yield from self._end_of_plain_text()
        if isinstance(piece, Speech | Passage) and self._was_there(piece.text) and self._drop:
            return
        yield piece

    def _whole_paragraphs(self, text: str) -> Iterator[PlainText]:
        text = self._paragraph + text
        end = text.rfind("\n\n") + 2
        if end == 1:  # there is none
            end = 0
        yield from self._new_paragraphs(text[:end])
        text = text[end:]
        while len(text) > LONG_PARAGRAPH:
            line_end = text.find("\n", LONG_PARAGRAPH) + 1
            if not line_end:
                break
            yield PlainText(text[:line_end])
            text = text[line_end:]
        self._paragraph = text

    def _end_of_plain_text(self) -> Iterator[PlainText]:
        if self._paragraph:
            yield from self._new_paragraphs(self._paragraph)
            self._paragraph = ""

    def _new_paragraphs(self, text: str) -> Iterator[PlainText]:
        if not text:
            return
        paragraphs = text.split("\n\n")
        new = [paragraph for paragraph in paragraphs if not self._was_there(paragraph)]
        if self._drop and len(new) < len(paragraphs):
            text = "\n\n".join(new)
        if text:
            yield PlainText(text)

    def _was_there(self, text: str) -> bool:
        """Return whether a long passage was there before, and remember it."""
        if len(text) < LONG_PASSAGE:
            return False
        key = key_of(text)
        if key is None:
            return False
        if key in self._passages:
            self._counts[PASSAGES] += 1
            return True
        if len(self._passages) < MOST_PASSAGES:
            self._passages.add(key)
        return False


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces, with plain texts in a row as one."""
    lines: list[str] = []
    for piece in pieces:
        if isinstance(piece, PlainText):
            lines.append(piece.text)
            continue
        if lines:
            yield PlainText("".join(lines))
            lines = []
        yield piece
    if lines:
        yield PlainText("".join(lines))
