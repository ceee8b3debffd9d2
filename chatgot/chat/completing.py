"""What can a line that begins with a slash go on with?"""

from collections.abc import Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from chatgot.chat.commands import COMMANDS
from chatgot.chat.names import AUTO
from chatgot.chat.session import Session


class CommandCompleter(Completer):
    """Completes commands, the names of known speakers (most lines first) and files."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._files = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield what may come next at the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        word, separator, argument = text.removeprefix("/").partition(" ")
        if not separator:
            for name, command in COMMANDS.items():
                if name.startswith(word.casefold()):
                    space = " " if command.takes else ""
                    yield Completion(
                        name + space, -len(word), display=f"/{name}", display_meta=command.help
                    )
            return
        takes = COMMANDS[word].takes if word in COMMANDS else ""
        if takes == "file":
            rest = Document(argument.lstrip())
            yield from self._files.get_completions(rest, complete_event)
        elif takes:
            begun = argument.rpartition(",")[2] if takes == "names" else argument
            yield from self._names(begun.lstrip(), with_auto=word == "with")

    def _names(self, begun: str, with_auto: bool) -> Iterable[Completion]:
        lines = {speaker.name: speaker.lines for speaker in self._session.actor.speakers}
        folded = begun.casefold()
        names = [AUTO] * with_auto + self._session.everyone
        at_start = [name for name in names if name.casefold().startswith(folded)]
        later = [name for name in names if f" {folded}" in name.casefold() and name not in at_start]
        for name in at_start + later:
            meta = f"{lines[name]:,} lines" if name in lines else ""
            yield Completion(name, -len(begun), display_meta=meta)
