"""Mends what readers yield, piece by piece: characters, names, what is there twice."""

import re
from collections.abc import Callable, Iterable, Iterator

from chatgot.data.preparation.cleaning.normal_form import nfc
from chatgot.data.preparation.cleaning.options import CleaningFindings, CleaningOptions
from chatgot.data.preparation.cleaning.plain_characters import in_plain_characters
from chatgot.data.preparation.cleaning.pseudonyms import NameCounts, Pseudonyms
from chatgot.data.preparation.cleaning.repeats import without_repeats
from chatgot.data.preparation.cleaning.speakers import Merging
from chatgot.data.preparation.cleaning.whole_lines import in_whole_lines
from chatgot.data.preparation.pieces import Passage, Piece, PlainText, Speech
from chatgot.data.prompts import is_speaker_name

BLANK_LINES = re.compile(r"\n\s*\n")


def cleaned(
    pieces: Iterable[Piece],
    options: CleaningOptions,
    findings: CleaningFindings,
    pseudonyms: Pseudonyms | None = None,
) -> Iterator[Piece]:
    """Yield the pieces of a whole text, mended.

    pieces: of all files, safe to write, with a `DocumentStart` between files.
    pseudonyms: of `names_in`, for `anonymize`.
    findings: is told what was changed; complete when the last piece was taken.
    """
    assert options.anonymize == (pseudonyms is not None), "names_in comes first"
    mended = _with_good_characters(pieces, options, findings)
    if pseudonyms is not None:
        mended = _anonymized(mended, pseudonyms, findings)
    yield from without_repeats(mended, findings, options.drop_duplicates)


def names_in(pieces: Iterable[Piece], options: CleaningOptions) -> Pseudonyms:
    """Return the pseudonyms for all who speak in a text, by reading it once before `cleaned`."""
    counts = NameCounts()
    for piece in _with_good_characters(pieces, options, CleaningFindings()):
        counts.count(piece)
    return Pseudonyms(counts, _mended_merge(options))


def _mended(text: str, options: CleaningOptions) -> tuple[str, int]:
    """Return a text with good characters, and how many were replaced."""
    text = nfc(text)
    return in_plain_characters(text) if options.normalize_quotes else (text, 0)


def _mended_merge(options: CleaningOptions) -> dict[str, str]:
    return {
        _mended(other, options)[0]: _mended(name, options)[0]
        for other, name in options.merge.items()
    }


def _with_good_characters(
    pieces: Iterable[Piece], options: CleaningOptions, findings: CleaningFindings
) -> Iterator[Piece]:
    """Yield the pieces in NFC, with plain quotes and merged speakers where that is asked for."""
    replaced = 0

    def mend(text: str) -> str:
        nonlocal replaced
        text, count = _mended(text, options)
        replaced += count
        return text

    merging = Merging(_mended_merge(options))
    for piece in in_whole_lines(pieces):
        is_spoken = isinstance(piece, Speech) and not options.merge
        if is_spoken and _is_ascii(piece):  # as most are: there is nothing to do
            yield piece
            continue
        good = _changed(piece, mend, mend, mend)
        if good is not None and options.merge:
            merging.watch(good)
            good = _changed(good, merging.name, _as_it_is, merging.plain_text)
        if good is not None:
            yield good
    merging.say_unknown(findings)
    if replaced:
        findings.changed["quotes, dashes and spaces"] = replaced


def _anonymized(
    pieces: Iterable[Piece], pseudonyms: Pseudonyms, findings: CleaningFindings
) -> Iterator[Piece]:
    """Yield the pieces without what tells who somebody is."""

    def text_of(text: str) -> str:
        return pseudonyms.text(text, findings)

    for piece in pieces:
        if isinstance(piece, Speech):
            findings.changed["names of speakers"] += 1
        changed = _changed(piece, pseudonyms.name, text_of, text_of)
        if changed is not None:
            yield changed
    pseudonyms.say_limits(findings)


Change = Callable[[str], str]


def _as_it_is(text: str) -> str:
    return text


def _changed(piece: Piece, name: Change, text: Change, plain_text: Change) -> Piece | None:
    """Return a piece with other texts; None: nothing is left of it."""
    if isinstance(piece, Speech):
        return _changed_speech(piece, name(piece.name), text(piece.text))
    if isinstance(piece, Passage):
        new_text = text(piece.text)
        if new_text is piece.text:
            return piece
        new_text = new_text.strip("\n")
        return Passage(new_text, piece.time) if new_text.strip() else None
    if isinstance(piece, PlainText):
        return PlainText(plain_text(piece.text))
    return piece


def _changed_speech(speech: Speech, name: str, text: str) -> Speech | None:
    if name is speech.name and text is speech.text:
        return speech
    if name is not speech.name and not is_speaker_name(name):
        name = speech.name
    if text is not speech.text:
        text = BLANK_LINES.sub("\n", text.strip())
    return Speech(name, text, speech.time) if text else None


def _is_ascii(piece: Piece) -> bool:
    """Return whether a speech has ASCII alone."""
    return isinstance(piece, Speech) and piece.text.isascii() and piece.name.isascii()
