"""Which old encoding are these lines in?

Each encoding is tried on the words that have bytes above ASCII. Letters are as surprising as they
are rare in the language, next to their neighbours; signs inside words, capitals after small
letters, two scripts in one word and bytes without a character are surprising in every language. The
encoding with the least surprise wins, if every other reading of the bytes is worse by enough.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chatgot.data.alphabets import alphabet
from chatgot.data.code_pages import CODE_PAGES, reading
from chatgot.data.double_byte import DOUBLE_BYTE, token_nats

EXCERPT_BYTES = 1 << 15  # how much of a sample is looked at
EXCERPT_PARTS = 16
MAX_LINES = 60
MAX_LINE_BYTES = 400
STAGES = (3, 12, 48, 240, None)  # runs after which hopeless candidates are dropped; None: all
HOPELESS = 25.0  # nats behind the best
RARE_BYTE = 4  # runs with a byte that is in fewer runs are looked at, too
GARBAGE_PER_BYTE = 7.0  # nats: a run costs no more, because a run may be torn
GARBAGE = 3.0
NOISE_BYTES = 20  # from so many bytes above ASCII on, noise is told from text
NOISE = 5.5  # nats for each of them
SURE = 1.0  # nats between the best text and the next one
ALIKE = 0.05  # share of the characters above ASCII
NOT_IN_ENCODING = 12.0  # nats: a character that an encoding does not have
SURELY_UTF8 = 3.0  # nats
# A blank in cp1252, the letter á in a DOS console: alone, only many of them say which one
NO_BREAK_SPACE = 0xA0
MANY_BLANKS = 4  # distinct runs

RUN = re.compile(rb"[A-Za-z0-9\x80-\xff]*[\x80-\xff][A-Za-z0-9\x80-\xff]*")
# In double-byte encodings, a character's second byte is 0x30 or higher
TOKEN = re.compile(rb"[\x30-\xff]*[\x80-\xff][\x30-\xff]*")
ESCAPE_SEQUENCE = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
HIGH_BYTE = re.compile(rb"[\x80-\xff]")
LINE_END = re.compile(rb"[\r\n]+")
ASCII = bytes(range(0x80))
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Guess:
    """An encoding and how sure it is."""

    encoding: str | None  # a Python codec; None: no reading is sure enough
    confidence: float  # 0 to 1


@dataclass(frozen=True)
class Run:
    """Letters, digits and bytes above ASCII in a row, at least one of them above ASCII."""

    data: bytes
    contexts: tuple[bytes, ...]  # each byte above ASCII between its neighbours
    limit: float  # nats


def guess_encoding(sample: bytes) -> Guess:
    """Return the encoding of lines that are not UTF-8; a few of their bytes may be torn."""
    lines = _lines(ESCAPE_SEQUENCE.sub(b" ", _excerpt(sample)))
    if not lines:
        return Guess(None, 0.0)
    few_lines = lines[:MAX_LINES]
    datas = _run_datas(few_lines)
    if _has_only_blanks(datas):
        return Guess("cp1252", 0.9) if len(datas) >= MANY_BLANKS else Guess(None, 0.5)
    runs = [_run(data) for data in datas]
    single = _race(runs)
    surprises = _best(single)
    double = _double(_tokens(few_lines), min(surprises.values()))
    if double and min(double.values()) < min(surprises.values()):
        return _decide({**surprises, **double}, b"\n".join(few_lines))
    seen = set(datas)
    others = [data for data in _run_datas(lines) if data not in seen]
    rest = [_run(data) for data in _with_rare_bytes(datas, others)]
    _add(single, rest)
    surprises = _best(single)
    guess = _decide(surprises, b" ".join(run.data for run in [*runs, *rest]))
    if guess.encoding != "cp1252" and all(len(run.data) == 1 for run in runs):
        return Guess(None, guess.confidence)  # no letter has a neighbour: that is no word
    return guess


def is_rather_utf8(line: bytes, encoding: str) -> bool:
    """Return whether a line that is UTF-8 is far less surprising so than in an old encoding."""
    text = line.decode("utf-8", "ignore")
    known = text.encode(encoding, "ignore")
    lost = len(text) - len(known.decode(encoding, "ignore"))
    as_utf8 = _line_nats(known, encoding) + lost * NOT_IN_ENCODING
    return _line_nats(line, encoding) - as_utf8 > SURELY_UTF8


def _line_nats(line: bytes, encoding: str) -> float:
    """Return the surprise of a line in an encoding, in its likeliest language."""
    if encoding in DOUBLE_BYTE:
        return sum(token_nats(encoding, token) for token in _tokens([line]))
    languages = dict.fromkeys(CODE_PAGES[encoding][1].split(), 0.0)
    _add({encoding: languages}, [_run(data) for data in RUN.findall(line)])
    return min(languages.values())


def _excerpt(sample: bytes) -> bytes:
    """Return whole lines from all parts of a long sample."""
    if len(sample) <= EXCERPT_BYTES:
        return sample
    parts = []
    length = EXCERPT_BYTES // EXCERPT_PARTS
    for part in range(EXCERPT_PARTS):
        start = part * (len(sample) - length) // (EXCERPT_PARTS - 1)
        if start:
            line_end = LINE_END.search(sample, start, start + length)
            start = line_end.end() if line_end else start
        parts.append(sample[start : start + length].rpartition(b"\n")[0] or sample[start:][:length])
    return b"\n".join(parts)


def _lines(text: bytes) -> list[bytes]:
    """Return the distinct lines with bytes above ASCII, evenly mixed."""
    lines = (line[:MAX_LINE_BYTES] for line in LINE_END.split(text))
    return _mixed(dict.fromkeys(line for line in lines if not line.isascii()))


def _mixed(entries: Iterable[bytes]) -> list[bytes]:
    """Return entries in an order in which any first few are from all parts."""
    numbered = enumerate(entries)
    return [entry for _, entry in sorted((number * GOLDEN_RATIO % 1, e) for number, e in numbered)]


def _run_datas(lines: Iterable[bytes]) -> list[bytes]:
    """Return the bytes of the distinct runs in lines."""
    return list(dict.fromkeys(data for line in lines for data in RUN.findall(line)))


def _run(data: bytes) -> Run:
    padded = b" " + data + b" "
    places = [byte.start() for byte in HIGH_BYTE.finditer(padded)]
    contexts = tuple(padded[place - 1 : place + 2] for place in places)
    return Run(data, contexts, GARBAGE_PER_BYTE * len(places) + GARBAGE)


def _has_only_blanks(datas: Sequence[bytes]) -> bool:
    """Return whether the bytes above ASCII may all be no-break spaces, some of them in words."""
    if any(byte > 0x7F and byte != NO_BREAK_SPACE for data in datas for byte in data):
        return False
    return any(data[0] != NO_BREAK_SPACE and data[-1] != NO_BREAK_SPACE for data in datas)


def _with_rare_bytes(datas: Sequence[bytes], others: Sequence[bytes]) -> list[bytes]:
    """Return those of the other runs that have a byte which few runs have."""
    counts = Counter(byte for data in datas for byte in set(data))
    chosen = []
    for data in others:
        if any(byte > 0x7F and counts[byte] < RARE_BYTE for byte in data):
            chosen.append(data)
            counts.update(set(data))
    return chosen


def _race(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Return code page -> language -> surprise, without those that are hopelessly behind."""
    surprises = {
        codec: dict.fromkeys(languages.split(), prior)
        for codec, (prior, languages) in CODE_PAGES.items()
    }
    start = 0
    for end in STAGES:
        _add(surprises, runs[start:end])
        if end is None or end >= len(runs):
            break
        start = end
        best = min(_best(surprises).values())
        for codec, languages in list(surprises.items()):
            kept = {name: nats for name, nats in languages.items() if nats < best + HOPELESS}
            surprises[codec] = kept
            if not kept:
                del surprises[codec]
    return surprises


def _best(surprises: dict[str, dict[str, float]]) -> dict[str, float]:
    return {codec: min(languages.values()) for codec, languages in surprises.items()}


def _add(surprises: dict[str, dict[str, float]], runs: Sequence[Run]) -> None:
    """Add the surprise of runs to that of each code page and language, in place."""
    for codec, languages in surprises.items():
        for run in runs:
            readings = [reading(codec, context) for context in run.contexts]
            shape = sum(r.nats for r in readings)
            letters = [r.letters for r in readings if r.letters]
            for language in languages:
                surprise = alphabet(language).surprise
                nats = shape + sum(surprise(*letter) for letter in letters)
                languages[language] += min(nats, run.limit)


def _tokens(lines: Iterable[bytes]) -> list[bytes]:
    return list(dict.fromkeys(token for line in lines for token in TOKEN.findall(line)))


def _double(tokens: Sequence[bytes], best: float) -> dict[str, float]:
    """Return double-byte encoding -> surprise of the tokens, for those that are not hopeless."""
    surprises = {}
    for codec, (prior, _) in DOUBLE_BYTE.items():
        nats = prior
        for token in tokens:
            nats += token_nats(codec, token)
            if nats > best + HOPELESS:
                break
        else:
            surprises[codec] = nats
    return surprises


def _decide(surprises: dict[str, float], text: bytes) -> Guess:
    """Return the encoding with the least surprise, if all other texts are worse by enough."""
    ranking = sorted(surprises, key=lambda codec: surprises[codec])
    best = ranking[0]
    best_text = text.decode(best, "surrogateescape")
    rivals = (c for c in ranking[1:] if not _alike(best_text, text.decode(c, "surrogateescape")))
    rival = next(rivals, None)
    margin = surprises[rival] - surprises[best] if rival else HOPELESS
    confidence = 1 / (1 + math.exp(-margin))
    above_ascii = len(text.translate(None, ASCII))
    if above_ascii >= NOISE_BYTES and surprises[best] > NOISE * above_ascii:
        return Guess(None, 0.0)
    return Guess(best if margin >= SURE else None, confidence)


def _alike(text: str, other: str) -> bool:
    """Return whether two readings differ at most in a few rare characters."""
    if text == other:
        return True
    if len(text) != len(other):
        return False
    different = sum(a != b for a, b in zip(text, other, strict=True))
    above_ascii = sum(c > "\x7f" for c in text)
    return different <= above_ascii * ALIKE
