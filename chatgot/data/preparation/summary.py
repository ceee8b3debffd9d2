"""What is said on the terminal of a prepared text: what was read, left out, and written."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from chatgot.data.preparation.inputs import LeftOut
from chatgot.data.preparation.prepare import FileRead, Prepared, count_of

PROMISE = "Everything stays on this machine: files are read here, and nothing is sent anywhere."
MOST_FILES = 5  # that are named for one reason
MOST_REMARKS = 10
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def summary(prepared: Prepared) -> Iterator[str]:
    """Yield the lines on files: what was read, what was not, and why."""
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
