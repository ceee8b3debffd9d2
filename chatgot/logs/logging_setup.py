"""The log: the console and a file for each run. Either may fail without harm to the run.

Nothing is set up at import, only by `setup_console` and `setup_logging`.
One record is one physical line: newlines and control characters in a message are escaped visibly,
so that no text can forge a record or steer the terminal. Samples (`extra={"block": True}`) and
tracebacks have further lines, which are indented.
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
from typing import TextIO

from colorlog import ColoredFormatter
from tqdm import tqdm

from chatgot.errors import StorageError
from chatgot.stdout import open_closed_streams

FORMAT = "%(asctime)s - %(levelname)s - %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
TERMINAL_FORMAT = "%(log_color)s%(asctime)s%(reset)s {level}%(message)s"
TERMINAL_DATE_FORMAT = "%H:%M:%S"
FURTHER_LINE = "\n    "
LINK = "training.log"  # in the run's folder; it leads to the log
# C0 except tab, DEL, C1, line separators, bidi controls, invisible marks and tags, lone surrogates
UNSAFE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    "\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)

logger = logging.getLogger("chatgot")
LOGGERS = (logger, logging.getLogger("py.warnings"))  # whose records are logged


def escape_controls(text: str, newline: str = r"\n") -> str:
    r"""Show control characters as escapes (`\x1b`, `\u202e`); each line feed becomes `newline`."""
    return newline.join(UNSAFE.sub(_escape, line) for line in text.split("\n"))


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


class OneLine(logging.Formatter):
    """Format a copy of the record, so that nothing of one output (colours) reaches the other."""

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
    """Colours where colorlog finds them fit: on a terminal, and as NO_COLOR and FORCE_COLOR say."""


class TerminalLine(ColouredOneLine):
    """The time, in the level's colour, and the text: a step's line fits on most screens.

    The level is named where it is not INFO. The log file has the date and every level.
    """

    def __init__(self, stream: TextIO, no_color: bool) -> None:
        form = TERMINAL_FORMAT.format(level="")
        super().__init__(form, TERMINAL_DATE_FORMAT, stream=stream, no_color=no_color)
        form = TERMINAL_FORMAT.format(level="%(log_color)s%(levelname)s%(reset)s - ")
        self._with_level = ColouredOneLine(
            form, TERMINAL_DATE_FORMAT, stream=stream, no_color=no_color
        )

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno != logging.INFO:
            return self._with_level.format(record)
        return super().format(record)


def console_formatter() -> ColouredOneLine:
    """Return what stderr's lines look like: short on a terminal, elsewhere as in the log file."""
    stream = sys.stderr
    plain = stream is None or os.environ.get("TERM") == "dumb"
    with suppress(AttributeError, ValueError, OSError):  # it may be closed, or anything
        if stream.isatty():
            return TerminalLine(stream, plain)
    form = FORMAT.replace("%(levelname)s", "%(log_color)s%(levelname)s%(reset)s")
    return ColouredOneLine(form, DATE_FORMAT, stream=stream, no_color=plain)


class Steady(logging.Handler):
    """A handler whose failure never reaches the caller: the other handlers get one warning."""

    has_warned = False

    @property
    def target(self) -> str:
        """What this handler writes to, as a warning names it."""
        return "console"

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 logging's name
        error = sys.exc_info()[1]
        place = f"{record.filename}:{record.lineno}"
        self.warn_other_handlers(
            f"{type(error).__name__}: {error}; the record {str(record.msg)[:200]!r} of {place} "
            "was lost, later lost records are not reported"
        )

    def warn_other_handlers(self, problem: str) -> None:
        """Log a problem of this handler on the other ones, once."""
        if self.has_warned:
            return
        self.has_warned = True
        text = f"{self.target}: {problem}"
        warning = logger.makeRecord(logger.name, logging.WARNING, __file__, 0, text, (), None)
        for handler in logger.handlers:
            if handler is not self:
                handler.handle(warning)

    def share_lock(self) -> None:
        """Take the lock of the handlers in use, since a warning goes from one to another."""
        for handler in logger.handlers:
            if isinstance(handler, Steady):
                self.lock = handler.lock
                return


class Console(Steady):
    """Write to stderr, above tqdm's bar; a character it cannot show becomes a backslash escape."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(console_formatter())

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
        """Flush now: a failing flush at interpreter exit would end with code 120."""
        super().close()
        # stderr is closed, or was before the start
        with suppress(OSError, ValueError, AttributeError):
            try:
                sys.stderr.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class LogFile(Steady, RotatingFileHandler):
    """Append to the log and rotate it; begin it anew when it was deleted or moved away."""

    run_dir: Path | None = None  # where link_log put the link
    header: tuple[logging.LogRecord, ...] = ()  # what each new part begins with

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
        is_full = super().shouldRollover(record)  # this opens the file where it is closed
        # an empty part is not worth a name
        return bool(is_full) and self.stream is not None and self.stream.tell() > 0

    def doRollover(self) -> None:  # noqa: N802 logging's name
        try:
            self.close()
            super().doRollover()
        except OSError as error:
            self.maxBytes = 0  # each further try would push the oldest part out
            self.warn_other_handlers(f"cannot be rotated and grows on: {error}")
        run_dir = self.run_dir
        self.run_dir = None  # it stays None when the link fails
        if run_dir is not None:
            link_log(Path(self.baseFilename), run_dir)

    def close(self) -> None:
        # a full disk: the file is closed all the same, and the next record opens it again
        with suppress(OSError):
            super().close()


class Early(Steady):
    """Keep records until there is a place for them: the log, and then the run's events.

    in_file: whether the log has them already.
    """

    MOST = 1000  # records: a program that never opens a run's events shall not keep all it logs

    def __init__(self, records: Iterable[logging.LogRecord] = (), in_file: bool = False) -> None:
        super().__init__()
        self.setFormatter(OneLine(FORMAT, DATE_FORMAT))
        self.records = list(records)
        self.in_file = in_file

    def emit(self, record: logging.LogRecord) -> None:
        if not self.in_file or len(self.records) < self.MOST:
            self.records.append(record)


def take_early_records() -> list[logging.LogRecord]:
    """Return the records that were kept for the run's events, and keep no more of them.

    Records that the log file does not have yet stay for it.
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
    """Log to these handlers in place of those of the call before."""
    for target in LOGGERS:
        for old in [handler for handler in target.handlers if isinstance(handler, Steady)]:
            _remove(old)
        for handler in handlers:
            # one lock for all: a warning goes from one handler to another
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
    """Log an exception that nobody caught; the console shows it as the log does."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logger.critical("an exception that nobody caught:", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        name = args.thread.name if args.thread else "a thread"
        logger.critical("an exception that nobody caught in %s:", name, exc_info=args.exc_value)


def setup_console() -> None:
    """Log to the console until there is a file, which then gets these records too.

    Standard streams that were closed before the start lead nowhere from now on.
    """
    open_closed_streams()
    _install(Console(), Early())


def setup_logging(
    config_name: str | None = None,
    timestamp: str | None = None,
    logs_dir: Path = Path("logs"),
    *,
    max_bytes: int = 10_000_000,
    backups: int = 5,
) -> Path:
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
        if isinstance(handler, Early) and not handler.in_file
        for record in handler.records
    ]
    _install(Console(), file, Early(early, in_file=True))
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
            # before they are logged: that may begin a new part already
            handler.header = tuple(records)
    for record in records:
        logger.handle(record)


def link_log(log_path: Path, run_dir: Path) -> None:
    """Make `run_dir`/training.log a relative link to the log, training.log.1 ... to older parts.

    Renewed after each rotation. Where links cannot be made, a copy as of then.
    Best effort: a failure is one warning; no retry.
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
        # Windows without the right to make links, or the log on another drive
        shutil.copyfile(part, temporary)
    temporary.replace(link)


@contextmanager
def crash_trace(path: Path) -> Iterator[None]:
    """Let a crash of the interpreter itself (a segmentation fault) leave a traceback in `path`.

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
