"""What is said on the terminal of a prepared text: what was read, left out, and written."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from chatgot.data.preparation.inputs import LeftOut
from chatgot.data.preparation.look import visible
from chatgot.data.preparation.prepare import FileRead, Prepared, count_of

PROMISE = "Everything stays on this machine: files are read here, and nothing is sent anywhere."
MOST_FILES = 5  # that are named for one reason
MOST_REMARKS = 10
MOST_REPEATS = 5
MOST_SPEAKERS = 8
MOST_CHARACTERS = 20  # that are rare
PREVIEW_LINES = 8
PREVIEW_WIDTH = 90
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def summary(prepared: Prepared) -> Iterator[str]:
    """Yield the lines on a prepared text: what was read, what was not, why, and what it is."""
    yield f"read: {files_read(prepared)}"
    yield from _remarks(prepared.read)
    not_taken = sum((file.findings.left_out for file in prepared.read), Counter[str]())
    if not_taken:
        yield f"not taken: {counts_of(not_taken)}"
    faulty = [LeftOut(file.name, file.fault) for file in prepared.read if file.fault]
    yield from reasons("read in part", faulty)
    yield from reasons("left out", prepared.left_out)
    if prepared.skipped:
        kinds = Counter(skipped.reason for skipped in prepared.skipped)
        yield f"skipped: {counts_of(kinds)}"
    yield from _mending(prepared)
    yield from _text(prepared)


def _mending(prepared: Prepared) -> Iterator[str]:
    """Yield what was changed in the text, and what is there twice."""
    findings = prepared.look.findings
    if findings.changed:
        yield f"changed: {counts_of(findings.changed)}"
    if findings.repeated:
        dropped = findings.repeated & findings.left_out
        kept = "left out" if dropped else "kept; --drop_duplicates leaves them out"
        yield f"twice in the text: {counts_of(findings.repeated)} ({kept})"
    for repeat in findings.repeats[:MOST_REPEATS]:
        says = "says what" if repeat.is_exact else "nearly says what"
        yield f"  {repeat.title} {says} {repeat.earlier} says"
    for remark in findings.remarks:
        yield f"  {remark}"


def _text(prepared: Prepared) -> Iterator[str]:
    """Yield what the text consists of, and its first lines."""
    look = prepared.look
    yield (
        f"text: {count_of(prepared.characters, 'character')}, {prepared.distinct:,} different, "
        f"{count_of(prepared.documents, 'document')}"
    )
    rare = [character for character in look.alphabet() if character.is_rare]
    if rare:
        shown = " ".join(visible(character.character) for character in rare[:MOST_CHARACTERS])
        more = " ..." if len(rare) > MOST_CHARACTERS else ""
        yield f"rare: {len(rare):,} characters, below {look.rare_below} times each: {shown}{more}"
    speakers = look.speakers()
    if speakers:
        lines = [f"{speaker.name} ({speaker.lines:,})" for speaker in speakers[:MOST_SPEAKERS]]
        more = ", ..." if len(speakers) > MOST_SPEAKERS else ""
        yield f"speakers: {len(speakers):,}, with their lines: {', '.join(lines)}{more}"
    else:
        yield "speakers: none; the model learns to go on with a text, not to answer"
    yield "it begins:"
    for line in look.first_lines.split("\n")[:PREVIEW_LINES]:
        yield f"    {line[:PREVIEW_WIDTH]}".rstrip()


def files_read(prepared: Prepared) -> str:
    """Return how many files were read: `24 files: 22 SRT subtitles (utf-8), 2 plain text ...`."""
    encodings: dict[str, Counter[str]] = defaultdict(Counter)
    for file in prepared.read:
        encodings[file.kind][file.encoding or ""] += 1
    kinds = []
    for kind, names in sorted(encodings.items(), key=lambda entry: -entry[1].total()):
        named = ", ".join(name for name, _ in names.most_common() if name)
        kinds.append(f"{names.total():,} {kind}" + (f" ({named})" if named else ""))
    return f"{count_of(len(prepared.read), 'file')}: {', '.join(kinds)}"


def counts_of(counts: Counter[str]) -> str:
    """Return counts in words, the largest first: `12 media messages, 3 system lines`."""
    return ", ".join(f"{number:,} {what}" for what, number in counts.most_common())


def human_size(size: int) -> str:
    """Return a number of bytes in words: `1.2 MB`."""
    for unit, name in UNITS:
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return count_of(size, "byte")


def _remarks(files: Iterable[FileRead]) -> Iterator[str]:
    """Yield what readers guessed or found odd, each remark once, with the files it is about."""
    about: dict[str, list[str]] = defaultdict(list)
    for file in files:
        for remark in file.findings.remarks:
            about[remark].append(file.name)
    for remark, names in list(about.items())[:MOST_REMARKS]:
        yield f"  {_named(names)}: {remark}"
    if len(about) > MOST_REMARKS:
        yield f"  and {len(about) - MOST_REMARKS:,} more remarks"


def reasons(title: str, left_out: Iterable[LeftOut]) -> Iterator[str]:
    """Yield a line for each reason, with the files that it is the reason for."""
    about: dict[str, list[str]] = defaultdict(list)
    for entry in left_out:
        about[entry.reason].append(entry.name)
    if not about:
        return
    yield f"{title}: {count_of(sum(map(len, about.values())), 'file')}"
    for reason, names in about.items():
        yield f"  {_named(names)}: {reason}"


def _named(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - MOST_FILES
    return ", ".join(names[:MOST_FILES]) + (f" and {more:,} more" if more > 0 else "")
