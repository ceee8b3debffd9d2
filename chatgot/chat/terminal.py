"""How does a conversation look on a terminal, and how are its lines typed?"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, DummyCompleter
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.styles import Style

from chatgot.chat.completing import CommandCompleter
from chatgot.chat.console import Stopped
from chatgot.chat.history import TypedLines, history_file
from chatgot.chat.session import Session
from chatgot.chat.wrapping import Wrapper
from chatgot.logs.logging_setup import escape_controls

COLOURS = ("ansicyan", "ansigreen", "ansiyellow", "ansimagenta", "ansiblue", "ansired")
STYLE = Style.from_dict(
    {"hint": "ansibrightblack", "note": "ansibrightblack italic", "marked": "reverse"}
)
PATIENCE_S = 2.0  # a Ctrl-C this long after one that nobody noticed ends the program


class Terminal:
    """Reads lines with completion and history, and streams what is said in colours.

    Inside its `with` block, Ctrl-C never ends the program: pressed once more after an answer has
    stopped, it would lose the conversation.

    key_source, screen: for tests; by default the terminal itself.
    """

    def __init__(self, key_source: Input | None = None, screen: Output | None = None) -> None:
        self._screen = screen or create_output()
        self._lines: PromptSession[str] = PromptSession(
            history=TypedLines(history_file(), self.note),
            complete_while_typing=Condition(_is_command),
            key_bindings=_keys(),
            input=key_source,
            output=self._screen,
        )
        self._questions: PromptSession[str] = PromptSession(
            history=InMemoryHistory(), input=key_source, output=self._screen
        )
        self._colours: dict[str, str] = {}  # by name
        self._wrapper = Wrapper(self._width())

    def __enter__(self) -> "Terminal":
        self._handler_before = signal.signal(signal.SIGINT, _do_nothing)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._handler_before)

    def complete_for(self, session: Session) -> None:
        """Let Tab complete what this conversation knows."""
        self._lines.completer = CommandCompleter(session)

    def read(self, label: str, hint: str = "", default: str = "") -> str:
        prompt = FormattedText([(self._colour(label), escape_controls(f"{label}> ".lstrip()))])
        placeholder = FormattedText([("class:hint", hint)])
        return self._lines.prompt(prompt, default=default, placeholder=placeholder, style=STYLE)

    def ask(self, question: str) -> str:
        try:
            return self._questions.prompt(question, completer=DummyCompleter())
        except (EOFError, KeyboardInterrupt):
            return ""

    def note(self, text: str) -> None:
        self._show("class:note", f"{escape_controls(text, chr(10))}\n")

    def begin(self, name: str) -> None:
        self._wrapper = Wrapper(self._width())
        if name:
            self._show(self._colour(name), f"{escape_controls(name)}:\n")

    def write(self, text: str, marked: bool = False) -> None:
        style = "class:marked" if marked else ""
        if marked:
            # what the wrapper holds back belongs to the unmarked text before
            self._show("", self._wrapper.end())
        self._show(style, self._wrapper.feed(escape_controls(text, "\n")))
        if marked:
            self._show(style, self._wrapper.end())

    def end(self) -> None:
        self._show("", f"{self._wrapper.end()}\n\n")

    @contextmanager
    def answering(self) -> Iterator[Stopped]:
        """Note Ctrl-C instead of raising KeyboardInterrupt in the middle of a step."""
        presses: list[float] = []

        def on_signal(number: int, frame: FrameType | None) -> None:
            presses.append(time.monotonic())
            if presses[-1] - presses[0] > PATIENCE_S:
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, on_signal)
        try:
            yield lambda: bool(presses)
        finally:
            signal.signal(signal.SIGINT, before)

    def _show(self, style: str, text: str) -> None:
        if text:
            print_formatted_text(
                FormattedText([(style, text)]), end="", style=STYLE, output=self._screen, flush=True
            )

    def _colour(self, name: str) -> str:
        if name not in self._colours:
            self._colours[name] = COLOURS[len(self._colours) % len(COLOURS)]
        return f"{self._colours[name]} bold"

    def _width(self) -> int:
        return self._screen.get_size().columns


def _keys() -> KeyBindings:
    """Return our meaning of Tab: what can only go on in one way does so at once."""
    keys = KeyBindings()

    @keys.add("tab")
    def complete(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        asked = CompleteEvent(completion_requested=True)
        completions = list(buffer.completer.get_completions(buffer.document, asked))
        if len(completions) == 1:
            buffer.apply_completion(completions[0])
        elif buffer.complete_state:
            buffer.complete_next()
        else:
            buffer.start_completion(select_first=True)

    return keys


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Take a signal."""


def _is_command() -> bool:
    return get_app().current_buffer.text.startswith("/")
