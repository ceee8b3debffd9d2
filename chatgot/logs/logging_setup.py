"""The log: a file for each run, and the console; set up when called, and either may fail without harm to the run.

One record is one physical line: newlines and control characters in a message are escaped visibly, so that no text can
forge a record or steer the terminal. Samples (`extra={"block": True}`) and tracebacks have further lines, indented.
"""

import copy
import faulthandler
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import TextIO

from colorlog import ColoredFormatter
from tqdm import tqdm

from chatgot.errors import StorageError

FORMAT, DATE_FORMAT = "%(asctime)s - %(levelname)s - %(message)s", "%Y-%m-%d %H:%M:%S"
FURTHER_LINE, LINK = "\n    ", "training.log"
# C0 but for the tab, DEL, C1, line and paragraph separators, what turns the direction of text, marks and tags that
# nobody sees, lone surrogates
UNSAFE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)

logger = logging.getLogger("chatgot")


def escape_controls(text: str, newline: str = r"\n") -> str:
    """Show control characters as escapes (`\\x1b`, `\\u202e`); each line feed becomes `newline`."""
    lines = (
        UNSAFE.sub(lambda c: c[0].encode("unicode_escape").decode("ascii"), line)
        for line in text.split("\n")
    )
    return newline.join(lines)


class OneLine(logging.Formatter):
    """Format a copy of the record, so that nothing of one output (colours) reaches the other."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        newline = FURTHER_LINE if getattr(record, "block", False) else r"\n"
        text = escape_controls(record.getMessage().removesuffix("\n"), newline)
        traceback = (
            logging.Formatter.formatException(self, record.exc_info) if record.exc_info else None
        )
        for lines in filter(None, (traceback, record.stack_info)):
            text += FURTHER_LINE + escape_controls(lines, FURTHER_LINE)
        record.msg, record.args, record.exc_info, record.exc_text, record.stack_info = (
            text,
            None,
            None,
            None,
            None,
        )
        return super().format(record)


class ColouredOneLine(OneLine, ColoredFormatter):
    """Colours where colorlog finds them fit: on a terminal, and as NO_COLOR and FORCE_COLOR say."""


class Steady(logging.Handler):
    """A handler whose failure never reaches the caller; its first one is reported on the other handlers."""

    reported = False

    def handleError(self, record: logging.LogRecord) -> None:
        error, lost = (
            sys.exc_info()[1],
            f"the record {str(record.msg)[:200]!r} of {record.filename}:{record.lineno} was lost",
        )
        self.report(f"{type(error).__name__}: {error}; {lost}, later losses are not reported")

    def report(self, problem: str) -> None:
        text = f"{getattr(self, 'baseFilename', 'console')}: {problem}"
        warning = logger.makeRecord(logger.name, logging.WARNING, __file__, 0, text, None, None)
        others = (
            [] if self.reported else [handler for handler in logger.handlers if handler is not self]
        )
        self.reported = True
        for other in others:
            other.handle(warning)


class Console(Steady):
    """Write to stderr, above tqdm's bar; a character that it cannot show becomes a backslash escape."""

    def __init__(self) -> None:
        super().__init__()
        form = FORMAT.replace("%(levelname)s", "%(log_color)s%(levelname)s%(reset)s")
        plain = sys.stderr is None or os.environ.get("TERM") == "dumb"
        self.setFormatter(ColouredOneLine(form, DATE_FORMAT, stream=sys.stderr, no_color=plain))

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr
        if stream is None:  # closed before the start
            return
        try:
            encoding = getattr(stream, "encoding", None) or "utf-8"
            line = self.format(record).encode(encoding, "backslashreplace").decode(encoding)
            with tqdm.external_write_mode(file=stream):
                stream.write(line + "\n")
                stream.flush()
        except Exception:  # noqa: BLE001 as logging does: handleError says whatever went wrong
            self.handleError(record)

    def close(self) -> None:
        """Leave the interpreter nothing to flush at its end: where that fails, the exit code becomes 120."""
        super().close()
        with suppress(
            OSError, ValueError, AttributeError
        ):  # stderr is closed, or was before the start
            try:
                sys.stderr.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class LogFile(Steady, RotatingFileHandler):
    """Append to the log and rotate it; begin it anew when it was deleted or moved away."""

    run_dir: Path | None = None  # where link_log put the link
    header: tuple[logging.LogRecord, ...] = ()  # what each new part begins with

    def _open(self) -> TextIO:
        stream = super()._open()
        if self.header and stream.tell() == 0:
            stream.writelines(self.format(record) + self.terminator for record in self.header)
        return stream

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        path = Path(self.baseFilename)
        if self.stream and not (
            path.exists() and os.path.samestat(path.stat(), os.fstat(self.stream.fileno()))
        ):
            self.close()
        return (
            super().shouldRollover(record) and self.stream.tell() > 0
        )  # an empty part is not worth a name

    def doRollover(self) -> None:
        try:
            self.close()
            super().doRollover()
        except OSError as error:
            self.maxBytes = 0  # each further try would push the oldest part out
            self.report(f"cannot be rotated and grows on: {error}")
        run_dir, self.run_dir = self.run_dir, None  # it stays None when the link fails
        if run_dir is not None:
            link_log(Path(self.baseFilename), run_dir)

    def close(self) -> None:
        with suppress(
            OSError
        ):  # a full disk; the file is closed all the same, and the next record opens it again
            super().close()


class Early(Steady):
    """Keeps the records from before there is a file, for the file."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def _install(*handlers: Steady) -> None:
    for target in (logger, logging.getLogger("py.warnings")):
        for old in [handler for handler in target.handlers if isinstance(handler, Steady)]:
            target.removeHandler(old)
            old.close()
        for handler in handlers:
            handler.lock = handlers[
                0
            ].lock  # one for all: a report goes from one handler to another
            target.addHandler(handler)
        target.propagate = False
    logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook, threading.excepthook = _log_uncaught, _log_uncaught_in_thread


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Log an exception that nobody caught; the console shows it as the log does."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logger.critical("an exception that nobody caught:", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        name = args.thread.name if args.thread else "a thread"
        info = (args.exc_type, args.exc_value, args.exc_traceback)
        logger.critical("an exception that nobody caught in %s:", name, exc_info=info)


def setup_console() -> None:
    """Log to the console until there is a file, which then gets these records too; closed streams lead nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if (
            getattr(sys, name) is None
        ):  # the next file opened would get its number, and with it what C code prints
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    _install(Console(), Early())


def setup_logging(
    config_name: str | None = None, timestamp: str | None = None, logs_dir: Path = Path("logs"),
    *, max_bytes: int = 10_000_000, backups: int = 5,
) -> Path:  # fmt: skip
    """Log to the console and to `logs_dir`/train_{config_name}_{timestamp}.log; return that path.

    Called again, it replaces the handlers of the call before. Python's warnings are logged too.
    Raises: StorageError when the file cannot be opened; what was set up before then stays.
    """
    names = ("train", config_name, timestamp or time.strftime("%Y%m%d-%H%M%S"))
    path = Path(logs_dir, "_".join(filter(None, names)) + ".log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = LogFile(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")
    except OSError as error:
        advice = "set paths.logs to a folder that can be written"
        raise StorageError(
            f"{path}: the log cannot be opened: {error.strerror or error}; {advice}"
        ) from error
    file.setFormatter(OneLine(FORMAT, DATE_FORMAT))
    early = [
        record
        for handler in logger.handlers
        if isinstance(handler, Early)
        for record in handler.records
    ]
    _install(Console(), file)
    for record in early:
        file.handle(record)
    return path


def log_header(lines: Iterable[str]) -> None:
    """Log the lines, and repeat them at the top of each further part of the log."""
    records = [
        logger.makeRecord(logger.name, logging.INFO, __file__, 0, "%s", (line,), None)
        for line in lines
    ]
    for handler in logger.handlers:
        if isinstance(handler, LogFile):
            handler.header = tuple(
                records
            )  # before they are logged: that may begin a new part already
    for record in records:
        logger.handle(record)


def link_log(log_path: Path, run_dir: Path) -> None:
    """Make `run_dir`/training.log a relative link to the log, and training.log.1 ... to its older parts.

    Renewed after each rotation. Where links cannot be made, a copy as of then.
    Best effort: a failure is one warning, and the end of it.
    """
    try:
        name = re.compile(re.escape(log_path.name) + r"(\.\d+)?")
        for part in [path for path in log_path.parent.iterdir() if name.fullmatch(path.name)]:
            link = run_dir / (LINK + part.name.removeprefix(log_path.name))
            temporary = run_dir / f".{link.name}.tmp"
            temporary.unlink(missing_ok=True)
            try:
                temporary.symlink_to(
                    os.path.relpath(part.parent.resolve() / part.name, run_dir.resolve())
                )
            except (
                OSError,
                ValueError,
            ):  # Windows without the right to make links, or the log on another drive
                shutil.copyfile(part, temporary)
            temporary.replace(link)
    except OSError as error:
        logger.warning("%s cannot be linked to the log: %s", run_dir / LINK, error)
        return
    for handler in logger.handlers:
        if isinstance(handler, LogFile):
            handler.run_dir = run_dir.absolute()


@contextmanager
def crash_trace(path: Path) -> Iterator[None]:
    """Let a crash of the interpreter itself (a segmentation fault, say) leave its traceback in `path`.

    Without a crash no file stays. Best effort: where it cannot be made there is no trace.
    """
    try:
        file = path.open("ab")
    except OSError:
        yield
        return
    with file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
            with suppress(OSError):
                if path.stat().st_size == 0:
                    path.unlink()
