"""From what a user names to one text: found, read, made safe, written, and told of."""

import codecs
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Literal

from chatgot.atomic_file import atomic_file
from chatgot.data.encoding import CHUNK_BYTES
from chatgot.data.preparation.cleaning.cleaned import cleaned, names_in
from chatgot.data.preparation.cleaning.options import CleaningOptions
from chatgot.data.preparation.cleaning.rare_characters import (
    plain_forms,
    replaced_count,
    with_plain_forms,
)
from chatgot.data.preparation.detect import opened, surest_reader
from chatgot.data.preparation.inputs import Found, LeftOut, find_files, in_order_of_time
from chatgot.data.preparation.look import RARE_BELOW, Look
from chatgot.data.preparation.pieces import (
    DocumentStart,
    Passage,
    Piece,
    PlainText,
    Speech,
)
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.safe_pieces import safe_pieces
from chatgot.data.preparation.source import Source
from chatgot.data.preparation.writer import Nowhere, Sink, Writer
from chatgot.errors import ConfigError, StorageError
from chatgot.logs.waiting import Advance, waiting

Order = Literal["natural", "date"]
PIECES_FOR_TIME = 200  # of a file, among which its first time is looked for
WITH_TEXT = (Speech, Passage, PlainText)
TOLD_AT_ONCE = 1 << 14  # characters that the progress bar is told of
MOST_NAMED = 20  # files in the message of a refusal


@dataclass(frozen=True)
class Preparation:
    """What a user asks for.

    inputs: files, folders, patterns and zips.
    encoding: of all texts; None: guessed for each.
    min_count: characters that are there less often are written in a plain form; None: none are.
    ours: files that this command writes, which are not read.
    is_strict: refuse all where one file is left out.
    """

    inputs: tuple[str, ...]
    order: Order = "natural"
    encoding: str | None = None
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    cleaning: CleaningOptions = field(default_factory=CleaningOptions)
    min_count: int | None = None
    ours: tuple[Path, ...] = ()
    is_strict: bool = False


@dataclass
class FileRead:
    """A file that is in the text.

    fault: why it was not read to its end; empty: it was.
    """

    name: str
    kind: str
    encoding: str | None
    size: int
    findings: Findings = field(default_factory=Findings)
    fault: str = ""


@dataclass
class Prepared:
    """What was read, what was left out, and what was written.

    distinct: different characters that were written.
    """

    look: Look
    read: list[FileRead] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    skipped: list[LeftOut] = field(default_factory=list)
    documents: int = 0
    characters: int = 0
    size: int = 0
    distinct: int = 0

    def refusals(self) -> list[LeftOut]:
        """Return all files that are not in the text, or not to their end."""
        faulty = [LeftOut(file.name, file.fault) for file in self.read if file.fault]
        return [*self.left_out, *faulty]


def prepare(preparation: Preparation, output: Path | None) -> Prepared:
    """Write one text of all that the inputs name; it appears whole or not at all.

    output: None: nothing is written, but all is read.
    Raises: ConfigError for inputs without any text, for an output that is one of them, and, if that
    is asked for, where a file is left out; StorageError.
    """
    finding = find_files(preparation.inputs, preparation.ours)
    look = Look(preparation.min_count or RARE_BELOW)
    prepared = Prepared(look, left_out=finding.left_out, skipped=finding.skipped)
    files = finding.files
    if preparation.order == "date":
        files = in_order_of_time(files, map(_FirstTime(preparation), files))
    if preparation.is_strict and prepared.left_out:
        raise _refused(prepared)
    passes = 2 if preparation.cleaning.anonymize else 1
    total = passes * sum(found.size for found in files)
    with (
        waiting(f"reading {count_of(len(files), 'file')}", total) as advance,
        _sink(output) as sink,
    ):
        pieces = _mended(files, preparation, prepared, advance)
        if preparation.min_count is None:
            _write(pieces, preparation, prepared, sink)
        else:
            with tempfile.TemporaryFile(dir=None if output is None else output.parent) as whole:
                _write(pieces, preparation, prepared, whole)
                _write_frequent(whole, preparation.min_count, prepared, sink)
    for file in prepared.read:
        look.add_file(file.name, file.kind, file.encoding, file.size, file.findings, file.fault)
    for left_out in prepared.left_out:
        look.leave_out(left_out.name, left_out.reason)
    return prepared


def _mended(
    files: Sequence[Found], preparation: Preparation, prepared: Prepared, advance: Advance
) -> Iterator[Piece]:
    """Yield the pieces of all files, safe to write, mended and looked at."""
    look = prepared.look
    pseudonyms = None
    if preparation.cleaning.anonymize:
        first = _Reading(preparation, Prepared(look), advance)
        pseudonyms = names_in(safe_pieces(first.pieces(files)), preparation.cleaning)
    reading = _Reading(preparation, prepared, advance)
    pieces = safe_pieces(reading.pieces(files))
    return look.watch(cleaned(pieces, preparation.cleaning, look.findings, pseudonyms))


def _write(
    pieces: Iterator[Piece], preparation: Preparation, prepared: Prepared, sink: Sink
) -> None:
    """Write all pieces, and note how much it was. Raises: ConfigError, OSError."""
    writer = Writer(sink)
    for piece in pieces:
        writer.write(piece)
    writer.end_document()
    if preparation.is_strict and prepared.refusals():
        raise _refused(prepared)
    if not writer.documents:
        raise _no_text(preparation, prepared)
    prepared.documents = writer.documents
    prepared.characters = writer.characters
    prepared.size = writer.size
    prepared.distinct = len(prepared.look.character_counts())


def _write_frequent(whole: IO[bytes], min_count: int, prepared: Prepared, sink: Sink) -> None:
    """Write a text again with its rare characters in a plain form. Raises: OSError."""
    counts = prepared.look.character_counts()
    forms = plain_forms(counts, min_count)
    prepared.look.findings.changed += replaced_count(counts, forms)
    size = 0
    characters = 0
    whole.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    chunks = (decoder.decode(block) for block in iter(lambda: whole.read(CHUNK_BYTES), b""))
    for text in with_plain_forms(chunks, forms):
        content = text.encode()
        sink.write(content)
        size += len(content)
        characters += len(text)
    written = (counts.keys() - forms.keys()) | set("".join(forms.values()))
    prepared.size = size
    prepared.characters = characters
    prepared.distinct = len(written)


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `2,000 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@contextmanager
def _sink(output: Path | None) -> Iterator[Sink]:
    """Open what is written to. Raises: ConfigError, StorageError."""
    if output is None:
        try:
            yield Nowhere()
        except OSError as error:  # of the temporary file of --min_count
            message = f"{tempfile.gettempdir()}: cannot be written: {error.strerror or error}"
            raise StorageError(message) from error
        return
    if output.is_dir():
        raise ConfigError(f"{output}: a folder; --output takes the name of a file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(output) as file:
            yield file
    except OSError as error:
        message = f"{output}: cannot be written: {error.strerror or error}; give another --output"
        raise StorageError(message) from error


class _Reading:
    """Reads the files one after the other, and notes what became of each."""

    def __init__(self, preparation: Preparation, prepared: Prepared, advance: Advance) -> None:
        self.preparation = preparation
        self.prepared = prepared
        self.advance = advance

    def pieces(self, files: Sequence[Found]) -> Iterator[Piece]:
        """Yield the pieces of all files; each begins a document. Raises: StorageError."""
        for found in files:
            yield DocumentStart(found.name)
            yield from self._pieces_of(found)

    def _pieces_of(self, found: Found) -> Iterator[Piece]:
        """Yield the pieces of a file up to where it cannot be read. Raises: StorageError."""
        file = None
        has_text = False
        told = 0  # characters that the progress bar knows of
        read = 0  # characters
        try:
            with opened(found, self.preparation.encoding) as (source, no_text):
                reader = surest_reader(source)
                if reader is None:
                    self._leave_out(found.name, no_text or "no reader takes it")
                    return
                file = FileRead(found.name, reader.kind, source.encoding, source.size)
                for piece in reader.read(source, self.preparation.reading, file.findings):
                    if isinstance(piece, WITH_TEXT):
                        has_text = has_text or not piece.text.isspace()
                        read += len(piece.text)
                        if read - told >= TOLD_AT_ONCE:
                            amount = min(read, found.size) - told
                            told += amount
                            self.advance(amount)
                    yield piece
        except UnreadableError as error:
            if file is None or not has_text:
                self._leave_out(found.name, str(error))
                return
            file.fault = f"{error}; what comes before that is in the text"
        finally:
            self.advance(found.size - told)
        assert file is not None, "it is read, or left out"
        if has_text:
            self.prepared.read.append(file)
        else:
            self._leave_out(found.name, "no text in it" + _in_brackets(file.findings.left_out))

    def _leave_out(self, name: str, reason: str) -> None:
        self.prepared.left_out.append(LeftOut(name, reason))


class _FirstTime:
    """Finds the first time that a file names, or the first of its messages."""

    def __init__(self, preparation: Preparation) -> None:
        self.preparation = preparation

    def __call__(self, found: Found) -> float | None:
        """Return seconds since 1970; None: the file has no time, or cannot be read."""
        try:
            with opened(found, self.preparation.encoding) as (source, _):
                reader = surest_reader(source)
                return None if reader is None else self._first_time(reader, source)
        except UnreadableError:
            return None  # reading it later says why

    def _first_time(self, reader: Reader, source: Source) -> float | None:
        pieces = reader.read(source, self.preparation.reading, Findings())
        times = (
            piece.time
            for piece in islice(pieces, PIECES_FOR_TIME)
            if isinstance(piece, Speech | Passage)
        )
        return next((time for time in times if time is not None), None)


def _in_brackets(counts: Counter[str]) -> str:
    """Return what was not taken: ` (12 media messages)`; empty: nothing."""
    words = ", ".join(f"{number:,} {what}" for what, number in counts.most_common())
    return f" ({words})" if words else ""


def _refused(prepared: Prepared) -> ConfigError:
    """Return the refusal of a preparation that is strict."""
    refusals = prepared.refusals()
    shown = [f"{refusal.name}: {refusal.reason}" for refusal in refusals[:MOST_NAMED]]
    more = f"\nand {len(refusals) - MOST_NAMED:,} more" if len(refusals) > MOST_NAMED else ""
    return ConfigError(
        f"--strict: {count_of(len(refusals), 'file')} left out, so nothing is written\n"
        + "\n".join(shown)
        + more
    )


def _no_text(preparation: Preparation, prepared: Prepared) -> ConfigError:
    """Return the refusal of inputs that hold no text."""
    refusals = prepared.refusals()[:MOST_NAMED]
    reasons = "".join(f"\n{refusal.name}: {refusal.reason}" for refusal in refusals)
    what = ", ".join(preparation.inputs[:3]) + (", ..." if len(preparation.inputs) > 3 else "")
    return ConfigError(f"{what}: no text in any file, so nothing is written{reasons}")
