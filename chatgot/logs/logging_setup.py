"""The log: on the console and in one file per run. If either fails, the run continues.

Nothing is set up at import, only by `setup_console` and `setup_logging`.
One record is one line: newlines and control characters in a message are escaped, so that no text
can imitate a record or control the terminal. Samples (`extra={"block": True}`) and tracebacks have
more lines, which are indented.
"""

import copy
import faulthandler
import io
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

from colorlog import ColoredFormatter

from chatgot.errors import StorageError
from chatgot.file_owner import why_not_opened
from chatgot.logs.bars import tqdm
from chatgot.logs.colours import is_terminal, wants_colours
from chatgot.stdout import open_closed_streams

FORMAT = "%(asctime)s - %(levelname)s - %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
TERMINAL_DATE_FORMAT = "%H:%M:%S"
FURTHER_LINE = "\n    "
LINK = "training.log"  # in the run's folder, a link to the log
# C0 except tab, DEL, C1, line separators, bidi controls, invisible marks and tags, lone surrogates
UNSAFE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    "\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)

logger = logging.getLogger("chatgot")
LOGGERS = (logger, logging.getLogger("py.warnings"))  # our own, and Python's warnings


def escape_controls(text: str, newline: str = r"\n") -> str:
    r"""Show control characters as escapes (`\x1b`, `\u202e`); each line feed becomes `newline`."""
    return newline.join(UNSAFE.sub(_escape, line) for line in text.split("\n"))


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


class OneLine(logging.Formatter):
    """Format a copy of the record, so that the console's colours do not get into the file."""

    def format(self, record: logging.LogRecord) -> str:
        newline = FURTHER_LINE if getattr(record, "block", False) else r"\n"
        text = escape_controls(record.getMessage().removesuffix("\n"), newline)
        if record.exc_info:
            traceback = logging.Formatter.formatException(self, record.exc_info)
            text += FURTHER_LINE + escape_controls(traceback, FURTHER_LINE)
        if record.stack_info:
            text += FURTHER_LINE + escape_controls(record.stack_info, FURTHER_LINE)
        safe = copy.copy(record)
        safe.msg = text
        safe.args = None
        safe.exc_info = None
        safe.exc_text = None
        safe.stack_info = None
        return super().format(safe)


class ColouredOneLine(OneLine, ColoredFormatter):
    """Format one line with colours, whatever the stream and the environment are."""

    def __init__(self, form: str, date_form: str) -> None:
        super().__init__(form, date_form, force_color=True)


class TerminalLine(logging.Formatter):
    """The time, in the level's colour, and the text: a step's line fits on most screens.

    The level is named where it is not INFO. The log file has the date and every level.
    """

    def __init__(self, coloured: bool) -> None:
        super().__init__()
        form = "%(log_color)s%(asctime)s%(reset)s {level}%(message)s"
        level = "%(log_color)s%(levelname)s%(reset)s - "
        self._calm = _one_line(form.format(level=""), TERMINAL_DATE_FORMAT, coloured)
        self._with_level = _one_line(form.format(level=level), TERMINAL_DATE_FORMAT, coloured)

    def format(self, record: logging.LogRecord) -> str:
        formatter = self._calm if record.levelno == logging.INFO else self._with_level
        return formatter.format(record)


def _one_line(form: str, date_form: str, coloured: bool) -> OneLine:
    """Return a formatter for a form with places for colours."""
    if coloured:
        return ColouredOneLine(form, date_form)
    return OneLine(form.replace("%(log_color)s", "").replace("%(reset)s", ""), date_form)


def console_formatter() -> logging.Formatter:
    """Return what stderr's lines look like: short on a terminal, elsewhere as in the log file."""
    coloured = wants_colours(sys.stderr)
    if is_terminal(sys.stderr):
        return TerminalLine(coloured)
    form = FORMAT.replace("%(levelname)s", "%(log_color)s%(levelname)s%(reset)s")
    return _one_line(form, DATE_FORMAT, coloured)


class Steady(logging.Handler):
    """A handler that never raises: if it fails, the other handlers get one warning."""

    has_warned = False

    @property
    def target(self) -> str:
        """The name of this handler's output, for warnings."""
        return "console"

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 logging's name
        error = sys.exc_info()[1]
        place = f"{record.filename}:{record.lineno}"
        self.warn_other_handlers(
            f"{type(error).__name__}: {error}; the record {str(record.msg)[:200]!r} from {place} "
            "was lost; more lost records will not be reported"
        )

    def warn_other_handlers(self, problem: str) -> None:
        """Log a problem of this handler with the other handlers, once."""
        if self.has_warned:
            return
        self.has_warned = True
        text = f"{self.target}: {problem}"
        warning = logger.makeRecord(logger.name, logging.WARNING, __file__, 0, text, (), None)
        for handler in logger.handlers:
            if handler is not self:
                handler.handle(warning)

    def share_lock(self) -> None:
        """Use the lock of the installed handlers, because one handler warns through the others."""
        for handler in logger.handlers:
            if isinstance(handler, Steady):
                self.lock = handler.lock
                return


class Console(Steady):
    """Write to stderr, above tqdm's bar; an unencodable character becomes a backslash escape.

    rank: of a process whose log is not the main one; only its errors are shown, with that number.
    """

    def __init__(self, rank: int | None = None) -> None:
        super().__init__()
        self._begin = "" if rank is None else f"rank {rank}: "
        if rank is not None:
            self.setLevel(logging.ERROR)
        self.setFormatter(console_formatter())

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr
        if stream is None:  # closed before the start
            return
        try:
            encoding = getattr(stream, "encoding", None) or "utf-8"
            line = f"{self._begin}{self.format(record)}".encode(
                encoding, "backslashreplace"
            ).decode(encoding)
            with tqdm.external_write_mode(file=stream):
                stream.write(line + "\n")
                stream.flush()
        except Exception:  # noqa: BLE001 as logging does: handleError says whatever went wrong
            self.handleError(record)

    def close(self) -> None:
        """Flush now: if flushing fails at interpreter exit, the exit code becomes 120."""
        super().close()
        # stderr may be closed
        with suppress(OSError, ValueError, AttributeError):
            try:
                sys.stderr.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class LogFile(Steady, RotatingFileHandler):
    """Append to the log and rotate it; start a new file if it was deleted or moved away."""

    run_dir: Path | None = None  # folder of the link that link_log made
    header: tuple[logging.LogRecord, ...] = ()  # the first records of each new part

    @property
    def target(self) -> str:
        return self.baseFilename

    def _open(self) -> io.TextIOWrapper:
        stream = super()._open()
        if self.header and stream.tell() == 0:
            stream.writelines(self.format(record) + self.terminator for record in self.header)
        return stream

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 logging's name
        path = Path(self.baseFilename)
        if self.stream:
            opened = os.fstat(self.stream.fileno())
            if not (path.exists() and os.path.samestat(path.stat(), opened)):
                self.close()
        is_full = super().shouldRollover(record)  # opens the file if it is closed
        # an empty part is not rotated
        return bool(is_full) and self.stream is not None and self.stream.tell() > 0

    def doRollover(self) -> None:  # noqa: N802 logging's name
        try:
            self.close()
            super().doRollover()
        except OSError as error:
            self.maxBytes = 0  # never try again: each try would remove the oldest part
            self.warn_other_handlers(f"cannot be rotated and keeps growing: {error}")
        run_dir = self.run_dir
        self.run_dir = None  # link_log sets it again, unless it fails
        if run_dir is not None:
            link_log(Path(self.baseFilename), run_dir)

    def close(self) -> None:
        # on a full disk the file is closed in spite of the error; the next record opens it again
        with suppress(OSError):
            super().close()


class Early(Steady):
    """Keep records until they can be written: to the log file, then to the run's events.

    in_file: whether the log file has them already.
    """

    MOST = 1000  # records; a program that never opens a run's events must not keep all of them

    def __init__(self, records: Iterable[logging.LogRecord] = (), in_file: bool = False) -> None:
        super().__init__()
        self.setFormatter(OneLine(FORMAT, DATE_FORMAT))
        self.records = list(records)
        self.in_file = in_file

    def emit(self, record: logging.LogRecord) -> None:
        if not self.in_file or len(self.records) < self.MOST:
            self.records.append(record)


def take_early_records() -> list[logging.LogRecord]:
    """Return the records kept for the run's events, and stop keeping them.

    Records that the log file does not have yet stay for the file.
    """
    records = []
    for handler in [handler for handler in logger.handlers if isinstance(handler, Early)]:
        records += handler.records
        if handler.in_file:
            _remove(handler)
    return records


def _remove(handler: logging.Handler) -> None:
    for target in LOGGERS:
        target.removeHandler(handler)
    handler.close()


def _install(*handlers: Steady) -> None:
    """Log to these handlers instead of the handlers of an earlier call."""
    for target in LOGGERS:
        for old in [handler for handler in target.handlers if isinstance(handler, Steady)]:
            _remove(old)
        for handler in handlers:
            # one lock for all, because one handler warns through the others
            handler.lock = handlers[0].lock
            target.addHandler(handler)
        target.propagate = False
    logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Log an uncaught exception on the console and in the file."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logger.critical("uncaught exception:", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        name = args.thread.name if args.thread else "a thread"
        logger.critical("uncaught exception in %s:", name, exc_info=args.exc_value)


def setup_console(rank: int | None = None) -> None:
    """Log to the console; a log file that is opened later gets these records too.

    Opens the null device for standard streams that were closed at the start.
    rank: of a process whose log is not the main one.
    """
    open_closed_streams()
    _install(Console(rank), Early())


def setup_logging(
    config_name: str | None = None,
    timestamp: str | None = None,
    logs_dir: Path = Path("logs"),
    *,
    max_bytes: int = 10_000_000,
    backups: int = 5,
    rank: int | None = None,
) -> Path:
    """Log to the console and to `logs_dir`/train_{config_name}_{timestamp}.log; return that path.

    rank: of a process whose log is not the main one; it has a file of its own.
    Another call replaces the handlers of the first. Python's warnings are logged too.
    Raises: StorageError if the file cannot be opened; then the old handlers stay.
    """
    own = None if rank is None else f"rank{rank}"
    names = ("train", config_name, timestamp or time.strftime("%Y%m%d-%H%M%S"), own)
    path = Path(logs_dir, "_".join(filter(None, names)) + ".log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = LogFile(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")
    except OSError as error:
        advice = "set paths.logs to a folder that can be written"
        if isinstance(error, PermissionError) and os.access(path.parent, os.W_OK):
            advice = "its owner can share it, or set paths.logs to another folder"
        raise StorageError(
            f"{path}: the log file {why_not_opened(path, error)}; {advice}"
        ) from error
    file.setFormatter(OneLine(FORMAT, DATE_FORMAT))
    early = [
        record
        for handler in logger.handlers
        if isinstance(handler, Early) and not handler.in_file
        for record in handler.records
    ]
    _install(Console(rank), file, Early(early, in_file=True))
    for record in early:
        file.handle(record)
    return path


def log_header(lines: Iterable[str]) -> None:
    """Log the lines, and repeat them at the top of each new part of the log."""
    records = [
        logger.makeRecord(logger.name, logging.INFO, __file__, 0, "%s", (line,), None)
        for line in lines
    ]
    for handler in logger.handlers:
        if isinstance(handler, LogFile):
            # set first: logging the lines may already start a new part
            handler.header = tuple(records)
    for record in records:
        logger.handle(record)


def link_log(log_path: Path, run_dir: Path) -> None:
    """Make `run_dir`/training.log a relative link to the log, training.log.1 ... to older parts.

    The links are made again after each rotation. If links are impossible, the parts are copied.
    Best effort: a failure is logged as a warning and not retried.
    """
    try:
        name = re.compile(re.escape(log_path.name) + r"(\.\d+)?")
        parts = [path for path in log_path.parent.iterdir() if name.fullmatch(path.name)]
        for part in parts:
            _link(part, run_dir / (LINK + part.name.removeprefix(log_path.name)))
    except OSError as error:
        logger.warning("%s cannot be linked to the log: %s", run_dir / LINK, error)
        return
    for handler in logger.handlers:
        if isinstance(handler, LogFile):
            handler.run_dir = run_dir.absolute()


def _link(part: Path, link: Path) -> None:
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        target = os.path.relpath(part.parent.resolve() / part.name, link.parent.resolve())
        temporary.symlink_to(target)
    except (OSError, ValueError):
        # Windows: no right to make links, or the log is on another drive
        shutil.copyfile(part, temporary)
    temporary.replace(link)


@contextmanager
def crash_trace(path: Path) -> Iterator[None]:
    """Write a traceback to `path` if the interpreter itself crashes (a segmentation fault).

    Without a crash no file is left. Best effort: if the file cannot be opened, there is no trace.
    """
    try:
        file = path.open("ab")
    except OSError:
        yield
        return
    try:
        with file:
            faulthandler.enable(file)
            try:
                yield
            finally:
                faulthandler.disable()
    finally:  # closed by now: Windows removes no open file
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
