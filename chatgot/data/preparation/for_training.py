"""The text that a training run gets where its user names a folder, a zip or a file that is no text.

It is prepared once, into data/NAME.txt. What it was made of is kept in the cache folder, so that a
second run prepares nothing again, and a changed source is noticed.
"""

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from chatgot.atomic_file import atomic_file
from chatgot.command_line import command_of
from chatgot.data.own_text import name_of
from chatgot.data.preparation.detect import source_of, surest_reader
from chatgot.data.preparation.inputs import find_files
from chatgot.data.preparation.prepare import Preparation, Prepared, count_of, prepare
from chatgot.data.preparation.reader import UnreadableError
from chatgot.data.preparation.readers.plain_text import PLAIN_TEXT
from chatgot.data.preparation.source import SAMPLE_BYTES, Source
from chatgot.data.preparation.summary import files_read, reasons
from chatgot.data.preparation.zips import is_zip
from chatgot.errors import ConfigError, StorageError

logger = logging.getLogger(__name__)

TEXTS = Path("data")
RECORD_FORMAT = 1
# Such a file is trained on as it is, whatever its lines look like
PLAIN_ENDINGS = ("", ".txt", ".text", ".md")
MOST_NAMED = 3  # files that have changed


@dataclass(frozen=True)
class Record:
    """What a text was prepared from.

    source: what the user named, as an absolute path.
    files: the size and the time of each, by its absolute path and its name in a zip.
    text: the size and the time (ns) of what was written.
    """

    format: int
    source: str
    files: Mapping[str, tuple[int, float]]
    text: tuple[int, int]


def is_to_be_prepared(given: Path) -> bool:
    """Return whether a run needs another text than the file itself. It raises nothing."""
    try:
        if given.is_dir():
            return True
        if not given.is_file():
            return False  # what is wrong is said when it is read as a text
        with given.open("rb") as file:
            head = file.read(4)
        if is_zip(head):
            return True
        if given.suffix.lower() in PLAIN_ENDINGS:
            return False
        source, _ = source_of(str(given), given)
    except (OSError, ValueError, UnreadableError):
        return False
    return surest_reader(source) not in (None, PLAIN_TEXT)


def rather_prepared(given: Path) -> str:
    """Return what kind of file a plain text seems to be, such as a chat; empty: just a text."""
    try:
        with given.open("rb") as file:
            head = file.read(SAMPLE_BYTES)
    except OSError:
        return ""  # what is wrong is said when it is read as a text
    beginning = head.decode("utf-8", "replace").replace("\r\n", "\n")
    source = Source(str(given), given, len(head), "utf-8", head, beginning)
    reader = surest_reader(source)
    return "" if reader is None or reader is PLAIN_TEXT else reader.kind


def prepared_path(given: Path) -> Path:
    """Return where the text of a source is written."""
    resolved = given.resolve()
    name = f"{resolved.name}.txt" if resolved.is_dir() else resolved.name
    return TEXTS / f"{name_of(Path(name))}.txt"


def refuse_nothing(given: Path) -> None:
    """Make sure that there is a file in what the user names. Raises: ConfigError."""
    finding = find_files((str(given),), (prepared_path(given),))
    if not finding.files:
        found = "".join(f"\n{left.name}: {left.reason}" for left in finding.left_out[:MOST_NAMED])
        raise ConfigError(f"{given}: no file to read; give a folder or zip with texts{found}")


@contextmanager
def text_of(given: Path, cache: Path, resumes: bool, dry_run: bool) -> Iterator[Path]:
    """Yield the text to train on, prepared if need be.

    cache: the folder of the token cache.
    resumes: a run of this source is to go on: with the text that it had.
    dry_run: write into a temporary folder, which is gone after the block.
    Raises: ConfigError, StorageError.
    """
    output = prepared_path(given)
    record_path = cache / "prepared" / f"{output.stem}.json"
    record = _read_record(record_path)
    if record is None and resumes and given.is_file() and not output.exists():
        yield given  # a run that was trained on the file as it is
        return
    files = _state_of(given, output)
    if output.exists():
        if resumes and (record is None or record.text != _identity(output)):
            # its checkpoint knows the text: another one is refused there
            logger.warning(
                "%s: nothing says that it is as it was prepared from %s; the run goes on with it "
                "if it is the text that it was trained on",
                output,
                given,
            )
            yield output
            return
        _refuse_other_text(given, output, record)
        assert record is not None, "a text without a record is refused"
        changes = _changes(record.files, files)
        if not changes:
            logger.info("%s: prepared from %s before, and nothing has changed", output, given)
        elif resumes:
            logger.warning("%s: %s; the run goes on with %s as it is", given, changes, output)
        if resumes or not changes:
            yield output
            return
        logger.info("%s: %s; preparing %s again", given, changes, output)
    if not dry_run:
        prepared = prepare(Preparation((str(given),), ours=(output,)), output)
        _write_record(record_path, given, files, output)
        _tell(prepared, given, output)
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="chatgot-", ignore_cleanup_errors=True) as folder:
        temporary = Path(folder) / output.name
        prepared = prepare(Preparation((str(given),), ours=(output,)), temporary)
        _tell(prepared, given, temporary)
        yield temporary


def _tell(prepared: Prepared, given: Path, output: Path) -> None:
    """Log what was prepared: two lines, and one for each reason why files were left out."""
    logger.info("prepared %s from %s", given, files_read(prepared))
    logger.info(
        "%s: %s, %s; for a look at it: %s",
        output,
        count_of(prepared.documents, "document"),
        count_of(prepared.characters, "character"),
        command_of("prepare", [str(given), "--dry_run"]),
    )
    for line in reasons("left out", prepared.refusals()):
        logger.warning("%s", line)


def _state_of(given: Path, output: Path) -> dict[str, tuple[int, float]]:
    """Return the size and the time of each file that is read. Raises: ConfigError."""
    finding = find_files((str(given),), (output,))
    state = {}
    for found in finding.files:
        member = "" if found.member is None else f": {found.member.place} {found.member.name}"
        state[f"{found.path.resolve()}{member}"] = (found.size, found.modified)
    return state


def _changes(before: Mapping[str, tuple[int, float]], now: Mapping[str, tuple[int, float]]) -> str:
    """Return in words which files have changed; empty: none."""
    kinds = {
        "new": [name for name in now if name not in before],
        "changed": [name for name in now if name in before and before[name] != now[name]],
        "gone": [name for name in before if name not in now],
    }
    words = [
        f"{count_of(len(names), 'file')} {kind} ({', '.join(_short(names))})"
        for kind, names in kinds.items()
        if names
    ]
    return ", ".join(words)


def _short(names: list[str]) -> list[str]:
    """Return the names of some files without their folders."""
    shown = [name.rpartition("/")[2] for name in names[:MOST_NAMED]]
    return shown if len(names) <= MOST_NAMED else [*shown, "..."]


def _refuse_other_text(given: Path, output: Path, record: Record | None) -> None:
    """Refuse to write over a text that is not what was prepared from this source.

    Raises: ConfigError.
    """
    advice = f"train on it ({output}), or move or rename it"
    if record is None or record.text != _identity(output):
        raise ConfigError(
            f"{output}: exists, and is not as it was prepared from {given}; it is kept: {advice}"
        )
    if record.source != str(given.resolve()) and Path(record.source).exists():
        raise ConfigError(
            f"{output}: was prepared from {record.source}, not from {given.resolve()}; "
            f"it is kept: {advice}"
        )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return (status.st_size, status.st_mtime_ns)


def _read_record(path: Path) -> Record | None:
    """Return what a text was made of; None: nobody knows."""
    try:
        about = json.loads(path.read_bytes())
        files = {name: (int(size), float(time)) for name, (size, time) in about["files"].items()}
        size, time = about["text"]
        record = Record(int(about["format"]), str(about["source"]), files, (int(size), int(time)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if record.format == RECORD_FORMAT else None


def _write_record(
    path: Path, given: Path, files: Mapping[str, tuple[int, float]], output: Path
) -> None:
    """Write down what a text was made of. Raises: StorageError."""
    record = Record(RECORD_FORMAT, str(given.resolve()), files, _identity(output))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(json.dumps(asdict(record)).encode())
    except OSError as error:
        message = f"{path}: cannot be written: {error.strerror or error}; set paths.cache"
        raise StorageError(message) from error
