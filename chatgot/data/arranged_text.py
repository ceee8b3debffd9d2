r"""Texts of several files, or split by documents: arranged once as one file in the token cache.

What trains comes first, what is held out comes last, so that everything else sees one text that is
split at one place. Between two files, and after each document, stands an end-of-text token.

`data.split: tail`: the last `test_split` of each source is held out, from the start of a line on.
`data.split: documents`: a document is held out if the hash of its content says so. So it stays held
out whatever else there is, and in whatever order. What is nearly the same as a held-out document
never trains: it is left out.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import BinaryIO, Literal

from chatgot.atomic_file import atomic_file
from chatgot.data.encoding import detect_encoding
from chatgot.data.known_hashes import file_hash
from chatgot.data.lengths import split_index
from chatgot.data.near_duplicates import NearDuplicates, Signing
from chatgot.data.text_file import text_chunks
from chatgot.data.text_sources import TextSource
from chatgot.data.vocabulary import END_OF_TEXT, DocumentSplitter
from chatgot.errors import ConfigError, StorageError
from chatgot.logs.waiting import Advance, waiting

logger = logging.getLogger(__name__)

FORMAT = 1  # of the files that remember how a text was arranged
HASH = 32  # hex digits of a hash in a file's name
MOST_SHARE = 0.5  # of the text may be held out by documents, unless test_split asks for more
MOST_COMPARED = 400_000  # held-out documents that near-duplicates are looked for among: 300 MB
SEPARATOR = f"{END_OF_TEXT}\n"
SEPARATOR_LENGTH = 2  # characters: the token is one

Split = Literal["tail", "documents"]
Span = tuple[int, int]  # of characters, the second excluded; an end-of-text token is one


@dataclass(frozen=True)
class ArrangedPart:
    """Where one source is in an arranged text."""

    name: str
    train: Span
    held_out: Span


@dataclass(frozen=True)
class Arranged:
    """An arranged text.

    n_train: characters of the training part.
    documents, held_out, left_out: how many there are; left out as near-duplicates. 0: not counted.
    """

    path: Path
    n_train: int
    parts: tuple[ArrangedPart, ...]
    documents: int = 0
    held_out: int = 0
    left_out: int = 0

    def log(self) -> None:
        """Say how a text was split by documents."""
        if not self.documents:
            return
        left_out = ""
        if self.left_out:
            left_out = f"; {self.left_out:,} left out, which nearly repeat held-out ones"
        logger.info(
            "split by documents: %s, of which %s held out%s",
            f"{self.documents:,}",
            f"{self.held_out:,}",
            left_out,
        )


def arrange(
    sources: Sequence[TextSource],
    split: Split,
    test_split: float,
    encoding: str | None,
    cache_dir: Path,
) -> Arranged:
    """Return a text that is arranged, or find it in the cache by the hashes of its files.

    It streams: memory does not grow with the texts, but for 1 byte a document.

    encoding: of all files; None: each one's is guessed.
    Raises: ConfigError (texts), StorageError (cache).
    """
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        return _Arranging(sources, split, test_split, encoding, cache_dir).arranged()
    except OSError as error:
        message = (
            f"{cache_dir}: the arranged text cannot be written: {error.strerror or error}; "
            "set paths.cache"
        )
        raise StorageError(message) from error


class _Written:
    """A text that is written piece by piece; `characters`: so far, an end-of-text token is one."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.characters = 0
        self.ends_line = True

    def write(self, text: str) -> None:
        """Write text without end-of-text tokens."""
        if text:
            self.file.write(text.encode())
            self.characters += len(text)
            self.ends_line = text.endswith("\n")

    def end_line(self) -> None:
        if not self.ends_line:
            self.write("\n")

    def separate(self) -> None:
        """Write an end-of-text token on a line of its own."""
        self.end_line()
        self.file.write(SEPARATOR.encode())
        self.characters += SEPARATOR_LENGTH

    def take_back(self, offset: int, characters: int) -> None:
        """Forget all after a place."""
        self.file.seek(offset)
        self.file.truncate()
        self.characters = characters
        self.ends_line = True


class _Arranging:
    """One text that is being arranged."""

    def __init__(
        self,
        sources: Sequence[TextSource],
        split: Split,
        test_split: float,
        encoding: str | None,
        cache_dir: Path,
    ) -> None:
        self.sources = sources
        self.split = split
        self.test_split = test_split
        self.cache_dir = cache_dir
        files = [file for source in sources for file in source.files]
        self.encodings = {file: encoding or detect_encoding(file) for file in files}
        self.hashes = {file: file_hash(file, cache_dir) for file in files}
        self.size = sum(file.stat().st_size for file in files)
        self.documents = 0
        self.held_out = 0
        self.left_out = 0

    def arranged(self) -> Arranged:
        """Return the arranged text. Raises: ConfigError, OSError."""
        path = self.cache_dir / f"{self._key()}.arranged.txt"
        about_path = path.with_suffix(".json")
        known = _read(path, about_path)
        if known is None:
            known = self._arrange(path)
            self._refuse_changed()
            with atomic_file(about_path) as file:
                file.write(json.dumps(_about(known)).encode())
        known.log()
        return known

    def _key(self) -> str:
        """Return a hash of all that the arranged text depends on."""
        facts = [
            [source.name, [[self.hashes[file], self.encodings[file]] for file in source.files]]
            for source in self.sources
        ]
        whole = json.dumps([FORMAT, self.split, self.test_split, facts])
        return sha256(whole.encode()).hexdigest()[:HASH]

    def _refuse_changed(self) -> None:
        for file, known in self.hashes.items():
            if file_hash(file, self.cache_dir) != known:
                raise ConfigError(
                    f"{file}: changed while it was read; start again when it is finished"
                )

    def _arrange(self, path: Path) -> Arranged:
        passes = 2  # one finds where to split, one writes
        with (
            waiting("putting the text together", passes * self.size) as advance,
            tempfile.TemporaryFile(dir=self.cache_dir) as aside,
            atomic_file(path) as file,
        ):
            train = _Written(file)
            held_out = _Written(aside)
            if self.split == "tail":
                parts = self._by_tail(train, held_out, advance)
            else:
                parts = self._by_documents(train, held_out, advance)
            n_train = train.characters
            aside.seek(0)
            shutil.copyfileobj(aside, file, 1 << 22)
        moved = tuple(
            ArrangedPart(
                part.name, part.train, (part.held_out[0] + n_train, part.held_out[1] + n_train)
            )
            for part in parts
        )
        return Arranged(path, n_train, moved, self.documents, self.held_out, self.left_out)

    def _pieces(self, source: TextSource, advance: Advance) -> Iterator[str | None]:
        """Yield the text of a source; None between two documents."""
        for number, file in enumerate(source.files):
            if number:
                yield None
            splitter = DocumentSplitter()
            after_token = False  # the line feed of an end-of-text token comes next
            chunks = text_chunks(file, self.encodings[file])
            for chunk in chunks:
                advance(len(chunk))
                for place, text in enumerate(splitter.feed(chunk)):
                    if place:
                        yield None
                        after_token = True
                    if after_token and text:
                        text = text.removeprefix("\n")
                        after_token = False
                    yield text
            for place, text in enumerate(splitter.end()):
                if place:
                    yield None
                yield text

    # ----------------------------------------------------------------------------------------------
    # The last part of each source

    def _by_tail(self, train: _Written, held_out: _Written, advance: Advance) -> list[ArrangedPart]:
        """Write the first part of each source into one text, and its last part into the other."""
        parts = []
        for number, source in enumerate(self.sources):
            total = sum(
                SEPARATOR_LENGTH if piece is None else len(piece)
                for piece in self._pieces(source, advance)
            )
            if number:
                train.separate()
                held_out.separate()
            spans = self._split_source(
                source, split_index(total, self.test_split), (train, held_out), advance
            )
            if spans[0][0] == spans[0][1] or spans[1][0] == spans[1][1]:
                raise ConfigError(
                    f"data.path: {source.name} is too short to hold out {self.test_split:g} of it, "
                    "or no line begins in that part; leave it out, break its lines, or join it "
                    "with another text"
                )
            parts.append(ArrangedPart(source.name, *spans))
        return parts

    def _split_source(
        self,
        source: TextSource,
        n_train: int,
        texts: tuple[_Written, _Written],
        advance: Advance,
    ) -> tuple[Span, Span]:
        """Write one source; the cut is moved to the start of the next line."""
        train, held_out = texts
        begins = [text.characters for text in texts]
        text = train
        left = n_train
        for piece in self._pieces(source, advance):
            if piece is None:
                text.separate()
                left -= SEPARATOR_LENGTH
                continue
            rest = piece
            if text is train and len(piece) >= left:
                line_feed = piece.find("\n", max(0, left - 1))
                cut = len(piece) if line_feed < 0 else line_feed + 1
                train.write(piece[:cut])
                rest = piece[cut:]
                if line_feed >= 0:
                    text = held_out
            left -= len(piece)
            text.write(rest)
        ends = [text.characters for text in texts]
        return (begins[0], ends[0]), (begins[1], ends[1])

    # ----------------------------------------------------------------------------------------------
    # Whole documents

    def _by_documents(
        self, train: _Written, held_out: _Written, advance: Advance
    ) -> list[ArrangedPart]:
        """Write the documents that train into one text, and those held out into the other."""
        is_held_out, near = self._choose(advance)
        parts = []
        number = 0  # of the document
        for source in self.sources:
            begins = (train.characters, held_out.characters)
            for document in _by_document(self._pieces(source, advance)):
                text = held_out if is_held_out[number] else train
                self._write_document(document, text, None if text is held_out else near)
                number += 1
            ends = (train.characters, held_out.characters)
            parts.append(ArrangedPart(source.name, (begins[0], ends[0]), (begins[1], ends[1])))
        self._refuse_bad_shares(train.characters, held_out.characters)
        return parts

    def _choose(self, advance: Advance) -> tuple[bytearray, NearDuplicates[int]]:
        """Return which documents are held out, and the signatures of those."""
        is_held_out = bytearray()
        near: NearDuplicates[int] = NearDuplicates()
        lowest = (2.0, -1)  # number and hash of the document that is held out if none is
        signatures = {}
        for source in self.sources:
            for document in _by_document(self._pieces(source, advance)):
                content = _Content()
                for piece in document:
                    content.add(piece)
                number = len(is_held_out)
                place = content.place()
                is_held_out.append(content.has_text and place < self.test_split)
                if content.has_text and (place, number) < lowest:
                    lowest = (place, number)
                    signatures = {number: content.signing.signature()}
                if is_held_out[-1] and len(near) < MOST_COMPARED:
                    near.add(number, content.signing.signature())
                self.documents += content.has_text
        if not any(is_held_out) and self.documents > 1:
            is_held_out[lowest[1]] = True
            near.add(lowest[1], signatures[lowest[1]])
        self.held_out = sum(is_held_out)
        if not self.held_out or self.held_out == self.documents:
            raise ConfigError(
                f"data.split=documents: the text has {self.documents} "
                f"document{'' if self.documents == 1 else 's'} ({END_OF_TEXT} on a line of its own "
                "stands between two), so none can be held out; set data.split=tail"
            )
        if len(near) >= MOST_COMPARED:
            logger.warning(
                "data.split=documents: near-duplicates are looked for among %s of %s held-out "
                "documents only",
                f"{MOST_COMPARED:,}",
                f"{self.held_out:,}",
            )
        return is_held_out, near

    def _write_document(
        self, document: Iterator[str], text: _Written, near: NearDuplicates[int] | None
    ) -> None:
        """Write a document; one that nearly repeats a held-out one is taken back.

        near: the held-out documents; None: this is one of them.
        """
        before = (text.file.tell(), text.characters)
        content = _Content()
        for piece in document:
            content.add(piece)
            text.write(piece)
        if not content.has_text:
            text.take_back(*before)
            return
        text.separate()
        if near is not None and near.find(content.signing.signature()) is not None:
            text.take_back(*before)
            self.left_out += 1

    def _refuse_bad_shares(self, n_train: int, n_held_out: int) -> None:
        """Refuse a split in which too much is held out. Raises: ConfigError."""
        share = n_held_out / max(1, n_train + n_held_out)
        if not n_train or share > max(MOST_SHARE, 2 * self.test_split):
            are = "document is" if self.held_out == 1 else "documents are"
            why = "the documents are too few or too unequal"
            if self.left_out:
                why += f", or too alike: {self.left_out:,} nearly repeat held-out ones"
            raise ConfigError(
                f"data.split=documents: {self.held_out:,} held-out {are} {share:.0%} of the text, "
                f"where data.test_split asks for {self.test_split:.0%}: {why}; set data.split=tail"
            )


class _Content:
    """What a document is, by its content: the blank lines around it do not count."""

    def __init__(self) -> None:
        self.has_text = False
        self.signing = Signing()
        self._digest = blake2b(digest_size=8)
        self._blank = ""  # white space that counts if text follows

    def add(self, piece: str) -> None:
        """Take the next piece."""
        self.signing.add(piece)
        text = self._blank + piece if self.has_text else piece.lstrip()
        kept = text.rstrip()
        self._blank = text[len(kept) :]
        if kept:
            self.has_text = True
            self._digest.update(kept.encode("utf-8", "surrogatepass"))

    def place(self) -> float:
        """Return a number from 0 to 1 that depends on the content alone."""
        return int.from_bytes(self._digest.digest()) / 2**64


def _by_document(pieces: Iterator[str | None]) -> Iterator[Iterator[str]]:
    """Yield an iterator of pieces for each document; it is read to its end before the next."""
    is_over = False

    def document() -> Iterator[str]:
        nonlocal is_over
        for piece in pieces:
            if piece is None:
                return
            yield piece
        is_over = True

    while not is_over:
        one = document()
        yield one
        for _ in one:
            pass


# --------------------------------------------------------------------------------------------------
# What is remembered


def _about(arranged: Arranged) -> dict[str, object]:
    return {
        "format": FORMAT,
        "size": arranged.path.stat().st_size,
        "n_train": arranged.n_train,
        "parts": [[part.name, part.train, part.held_out] for part in arranged.parts],
        "documents": arranged.documents,
        "held_out": arranged.held_out,
        "left_out": arranged.left_out,
    }


def _read(path: Path, about_path: Path) -> Arranged | None:
    """Return a text that was arranged before; None: there is none that can be used."""
    try:
        about = json.loads(about_path.read_bytes())
        if about["format"] != FORMAT or path.stat().st_size != about["size"]:
            return None
        parts = tuple(
            ArrangedPart(name, (int(train[0]), int(train[1])), (int(out[0]), int(out[1])))
            for name, train, out in about["parts"]
        )
        return Arranged(
            path,
            int(about["n_train"]),
            parts,
            int(about["documents"]),
            int(about["held_out"]),
            int(about["left_out"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
