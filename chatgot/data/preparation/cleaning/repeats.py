"""Finds what is in a text twice: documents, what an episode recalls of others, long passages.

Memory is bounded: so many lines, passages and documents are remembered, and no later ones.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator

from chatgot.data.near_duplicates import BLOCK, HASH_BYTES, Hashes, NearDuplicates, Signing
from chatgot.data.preparation.cleaning.keys import (
    LONG_PASSAGE,
    Paragraph,
    PlainKeys,
    key_of,
    keys_of,
    line_keys_of,
)
from chatgot.data.preparation.cleaning.options import MOST_PAIRS, CleaningFindings, Repeat
from chatgot.data.preparation.cleaning.recaps import Opening, units_of
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
        elif search.is_new(piece):  # which also remembers what it says
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
        self._more_lines = array("Q")  # of earlier documents, not yet among the lines
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
        self._said: list[str] = []  # the same of speeches, as lines that are compared
        self._unread = 0  # their characters
        self._length = 0  # of those that are
        self._new_lines = array("Q")
        self._counts: Counter[str] = Counter()
        has_earlier = bool(self._lines or self._more_lines)
        self._opening = Opening(self._lines) if has_earlier else None
        self._paragraph = ""  # of a plain text, not yet whole
        self._plain_keys = PlainKeys()  # of the plain text that was read last

    def is_new(self, piece: Piece) -> bool:
        """Return whether a piece can go on at once: a short one after the opening, as most are."""
        if isinstance(piece, Speech):
            text = piece.text
            self._parts.append(f"{piece.name}:\n{text}\n\n")
            self._said.append(text)
            self._unread += len(text)
            if self._unread >= BLOCK:
                self._read_parts()
            return len(text) < LONG_PASSAGE and self._opening is None and not self._paragraph
        self._read(piece)
        return (
            self._opening is None
            and isinstance(piece, Passage)
            and len(piece.text) < LONG_PASSAGE
            and not self._paragraph
        )

    def take(self, piece: Piece) -> Iterator[Piece]:
        """Yield what of a piece, and of those held before it, can go on; `is_new` comes first."""
        if self._opening is None:
            yield from self._without_passages(piece, self._plain_keys)
            return
        self._lines.update(self._more_lines)
        self._more_lines = array("Q")
        for part in _joined(self._after_opening(piece, self._opening)):
            yield from self._without_passages(part, _plain_keys_of(part))

    def _after_opening(self, piece: Piece, opening: Opening) -> list[Piece]:
        """Return what can go on where the opening ends within a piece; else nothing."""
        taken = 0  # characters
        for unit in units_of(piece):
            is_over = opening.take(unit)
            if isinstance(unit.piece, PlainText):
                taken += len(unit.piece.text)
            if is_over:
                self._opening = None
                rest = self._after_recap(opening)
                if isinstance(piece, PlainText) and taken < len(piece.text):
                    rest.append(PlainText(piece.text[taken:]))
                return rest
        return []

    def start_document(self, title: str) -> Iterator[Piece]:
        """Yield what is left of the document at hand, and whether it is dropped."""
        if self._opening is not None:
            for part in _joined(self._opening.all()):
                yield from self._without_passages(part, _plain_keys_of(part))
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
            self._more_lines.extend(self._new_lines)
        self._begin(title)

    def say_limits(self) -> None:
        """Remark what was not compared, as too much was remembered."""
        limits = [
            (self._line_count(), MOST_LINES, RECAPS, "lines"),
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
        """Add a piece that is no speech to what is known of the document at hand."""
        if isinstance(piece, Passage):
            text = piece.text
            self._parts.append(f"{text}\n\n")
            self._said.append(text)
        elif isinstance(piece, PlainText):
            text = piece.text
            self._parts.append(text)
            self._plain_keys = keys_of(text)
            self._remember_lines(self._plain_keys.lines)
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
        if self._said:
            # each is one line
            said = "\0".join(self._said).replace("\n", " ").replace("\0", "\n")
            self._remember_lines(line_keys_of(said))
        self._parts = []
        self._said = []
        self._unread = 0

    def _remember_lines(self, keys: Hashes) -> None:
        if self._line_count() < MOST_LINES:
            self._new_lines.frombytes(keys.tobytes())

    def _line_count(self) -> int:
        """Return how many lines are remembered; those of a document may be there twice."""
        return len(self._lines) + len(self._more_lines) + len(self._new_lines)

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

    def _without_passages(self, piece: Piece, keys: PlainKeys) -> Iterator[Piece]:
        """Yield a piece, if it is no long passage that was there before, or is to stay.

        keys: of a plain text.
        """
        if isinstance(piece, PlainText):
            yield from self._whole_paragraphs(piece.text, keys)
            return
        yield from self._end_of_plain_text()
        was_there = False
        if isinstance(piece, Speech | Passage) and len(piece.text) >= LONG_PASSAGE:
            was_there = self._was_there(key_of(piece.text))
        if not (was_there and self._drop):
            yield piece

    def _whole_paragraphs(self, text: str, keys: PlainKeys) -> Iterator[PlainText]:
        """Yield what is whole of a plain text, without long passages that were there before."""
        before = self._paragraph
        whole = before + text
        repeated = self._repeated(_paragraphs_after(before, text, keys))
        start = whole.rfind("\n\n") + 2
        if start == 1:  # there is none
            start = 0
        finished = whole[:start]
        if repeated and self._drop:
            finished = _without(finished, repeated)
        if finished:
            yield PlainText(finished)
        while len(whole) - start > LONG_PARAGRAPH:
            line_end = whole.find("\n", start + LONG_PARAGRAPH) + 1
            if not line_end:
                break
            yield PlainText(whole[start:line_end])
            start = line_end
        self._paragraph = whole[start:]

    def _end_of_plain_text(self) -> Iterator[PlainText]:
        paragraph = self._paragraph
        self._paragraph = ""
        is_long = len(paragraph) >= LONG_PASSAGE
        is_repeated = is_long and self._was_there(key_of(paragraph))
        if paragraph and not (is_repeated and self._drop):
            yield PlainText(paragraph)

    def _repeated(self, paragraphs: list[Paragraph]) -> list[Paragraph]:
        """Return those of some long paragraphs that were there before, and remember all."""
        keys = {key for _, _, key in paragraphs}
        has_room = len(self._passages) + len(keys) <= MOST_PASSAGES
        if has_room and len(keys) == len(paragraphs) and self._passages.isdisjoint(keys):
            self._passages |= keys
            return []
        return [paragraph for paragraph in paragraphs if self._was_there(paragraph[2])]

    def _was_there(self, key: int) -> bool:
        """Return whether a long passage was there before, by its key, and remember it."""
        if key in self._passages:
            self._counts[PASSAGES] += 1
            return True
        if len(self._passages) < MOST_PASSAGES:
            self._passages.add(key)
        return False


def _plain_keys_of(piece: Piece) -> PlainKeys:
    return keys_of(piece.text) if isinstance(piece, PlainText) else PlainKeys()


def _paragraphs_after(before: str, text: str, keys: PlainKeys) -> list[Paragraph]:
    """Return the long paragraphs that are whole once a text follows the beginning of one.

    keys: of the text. The places are those in both together.
    """
    if not before:
        return keys.paragraphs
    shift = len(before)
    is_over = before.endswith("\n") and text.startswith("\n")
    end = shift if is_over else shift + keys.first_end
    paragraphs = []
    if is_over or keys.first_end >= 0:
        begun = before + text[: end - shift]
        if len(begun) >= LONG_PASSAGE:
            paragraphs.append((0, end, key_of(begun)))
    return paragraphs + [
        (shift + first, shift + last, key)
        for first, last, key in keys.paragraphs
        if is_over or first > keys.first_end
    ]


def _without(text: str, paragraphs: Iterable[Paragraph]) -> str:
    """Return a text without some paragraphs, and without the blank line after each."""
    kept = []
    start = 0
    for begun, end, _ in paragraphs:
        kept.append(text[start:begun])
        start = end + 2
    return "".join([*kept, text[start:]])


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
