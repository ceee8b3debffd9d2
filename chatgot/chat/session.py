"""What can be done in a conversation: answer, retry, pick, watch, take back?"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from chatgot.chat.console import Console, Stopped
from chatgot.chat.conversation import Conversation, Turn
from chatgot.chat.names import AUTO, known_name, mistake_in_name, nearest
from chatgot.chat.speaking import Actor
from chatgot.errors import ConfigError
from chatgot.sampling.engine import Completion, Request
from chatgot.sampling.speeches import tidy


@dataclass
class Session:
    """A conversation with a model, and who takes part.

    user: who the person is. character: who answers, or AUTO. Both empty: the text has no speakers.
    room: among whom the model chooses who speaks next; empty: all it knows; None: no room.
    """

    actor: Actor
    console: Console
    user: str
    character: str
    room: list[str] | None = None
    conversation: Conversation = field(default_factory=Conversation)
    saved: set[Path] = field(default_factory=set)  # files that /save may replace without asking
    said_forgetting: bool = False

    # ----------------------------------------------------------------------------------------------
    # Who takes part

    @property
    def is_named(self) -> bool:
        """Return whether there are speakers; else the model goes on with what is typed."""
        return bool(self.user and self.character)

    @property
    def everyone(self) -> list[str]:
        """Return all names that can be meant, those with most lines first."""
        here = [self.user, self.character, *(self.room or []), *self.conversation.names]
        return [
            name for name in dict.fromkeys([*self.actor.known, *here]) if name not in ("", AUTO)
        ]

    def meant(self, typed: str) -> str:
        """Return the name that is meant; one line says so where the model has never seen it.

        Raises: ConfigError.
        """
        name = known_name(typed, self.everyone)
        mistake = mistake_in_name(name)
        if mistake:
            raise ConfigError(mistake)
        if name not in self.actor.known:
            near = nearest(name, self.actor.known)
            hint = f"; near it: {', '.join(near)}" if near else ""
            self.console.note(f"{name} is not in the training text, so the model guesses{hint}")
        _, unknown = self.actor.vocabulary.replace_unknown(name)
        self.warn_unknown(unknown)
        return name

    def warn_unknown(self, unknown: str) -> None:
        """Say which characters the model cannot read; none: say nothing."""
        if unknown:
            substitute, _ = self.actor.vocabulary.replace_unknown(unknown[0])
            self.console.note(
                f"the model reads {substitute!r} for {unknown!r}: it has never seen it"
            )

    def candidates(self) -> list[str]:
        """Return among whom the model chooses who speaks next."""
        if self.room:
            return self.room
        return [name for name in self.everyone if name != self.user]

    def next_name(self, choice: int, names: Sequence[str] = ()) -> str:
        """Return who speaks next.

        Where the model chooses, nobody speaks twice in a row: in a text such lines are one speech.

        names: among whom it chooses; empty: those who take part.
        Raises: ConfigError where nobody is known.
        """
        if not self.is_named:
            return ""
        if not names and self.room is None and self.character != AUTO:
            return self.character
        names = names or self.candidates()
        if not names:
            raise ConfigError("the model knows no speakers: say who answers, with /with NAME")
        last = self.conversation.last
        others = [name for name in names if last is None or name != last.name]
        return self.actor.choose(self.conversation, others or names, choice)

    # ----------------------------------------------------------------------------------------------
    # What is said

    def say(self, line: str) -> None:
        """Add what the person typed, and let the model answer."""
        _, unknown = self.actor.vocabulary.replace_unknown(line)
        self.warn_unknown(unknown)
        if self.is_named:
            text = "\n".join(part for part in line.split("\n") if part.strip())
            self.conversation.say(self.user, text)
        else:
            self.conversation.say("", line if self.conversation.last is None else f"\n{line}")
        self.answer()

    def say_nothing(self) -> None:
        """Do what an empty line means: a cut answer goes on, or the next one speaks."""
        last = self.conversation.last
        waits = last is None or last.typed or self.room is not None
        if waits or not self.is_named:
            self.answer()
        elif last is not None and last.cut:
            self.go_on(last)
        else:
            self.console.note("type a line, or let them talk: /watch 10; /help shows all commands")

    def answer(self) -> None:
        """Let the model speak."""
        with self.console.answering() as stopped:
            turn = self._speak(stopped)
        self._explain(turn, stopped())

    def watch(self, turns: int) -> None:
        """Let the model speak for everyone who takes part, until Ctrl-C is pressed."""
        names: list[str] = []
        if self.is_named and self.room is None and self.character != AUTO:
            names = list(dict.fromkeys([self.user, self.character]))
        turn = None
        with self.console.answering() as stopped:
            for _ in range(turns):
                turn = self._speak(stopped, names)
                if stopped():
                    break
        self._explain(turn, stopped())

    def go_on(self, last: Turn) -> None:
        """Let a cut answer go on."""
        before = replace(self.conversation, last=last.previous)
        request = self.actor.request(before, last.name, before.next_choice(), begun=last.text)
        with self.console.answering() as stopped:
            completion = self._stream(last.name, request, stopped)
        self.conversation.go_on(tidy(completion.text), cut=is_cut(completion))
        self._explain(self.conversation.last, stopped())

    def retry(self) -> None:
        """Let the model answer again, in place of its last answer."""
        before = self.conversation.last
        if not self.conversation.retract_answer() and before is None:
            raise ConfigError("nothing has been said yet")
        self.answer()
        if self.conversation.last is None or self.conversation.last.typed:
            self.conversation.last = before

    def pick(self, n: int) -> None:
        """Write n answers at once and let the person choose: in a room, of the next line.

        Elsewhere they are answers in place of the last one.
        """
        before = self.conversation.last
        if self.room is None:
            self.conversation.retract_answer()
        place = self.conversation.last
        choices = [self.conversation.next_choice() for _ in range(n)]
        with self.console.answering() as stopped:
            names = [self.next_name(choice) for choice in choices]
            completions = self._stream_numbered(names, choices, stopped)
        turns: list[Turn | None] = []
        for name, completion in zip(names, completions, strict=True):
            text = self._kept(completion)
            self.conversation.last = place
            cut = is_cut(completion)
            turns.append(self.conversation.answer(name, text, cut=cut) if text.strip() else None)
        self.conversation.last = before
        self._ask_which(turns)

    def choose(self) -> None:
        """Show all answers that there were in this place; the person chooses one."""
        turns = self.conversation.versions()
        if not turns:
            raise ConfigError("there is no answer to choose another one for")
        for number, turn in enumerate(turns, 1):
            self.console.begin(numbered(number, turn.name))
            self.console.write(turn.text)
            self.console.end()
        self._ask_which(turns)

    def _ask_which(self, turns: Sequence[Turn | None]) -> None:
        """Ask which of the answers was given; the conversation goes on from there."""
        typed = self.console.ask(f"Which one? 1 to {len(turns)}, Enter: none ").strip()
        is_number = typed.isascii() and typed.isdigit() and 1 <= int(typed) <= len(turns)
        turn = turns[int(typed) - 1] if is_number else None
        if turn is not None:
            self.conversation.replace_last(turn)
        elif typed:
            self.console.note(f"no answer has the number {typed}: all stays as it was")

    # ----------------------------------------------------------------------------------------------
    # How it is written

    def _speak(self, stopped: Stopped, names: Sequence[str] = ()) -> Turn | None:
        """Stream the next speech; return it. None: the model said nothing."""
        choice = self.conversation.next_choice()
        name = self.next_name(choice, names)
        request = self.actor.request(self.conversation, name, choice)
        completion = self._stream(name, request, stopped)
        if not completion.text.strip():
            return None
        return self.conversation.answer(name, self._kept(completion), cut=is_cut(completion))

    def _stream(self, name: str, request: Request, stopped: Stopped) -> Completion:
        """Show the completion of one request while it grows; return it."""
        with closing(self.actor.write([request])) as steps:
            (completion,) = next(steps)
            self._show_growing(name, completion, steps, stopped)
        self._say_forgetting(completion)
        return completion

    def _stream_numbered(
        self, names: Sequence[str], choices: Sequence[int], stopped: Stopped
    ) -> list[Completion]:
        """Show several completions, which grow at once, one after the other; return them."""
        requests = [
            self.actor.request(self.conversation, name, choice)
            for name, choice in zip(names, choices, strict=True)
        ]
        with closing(self.actor.write(requests)) as steps:
            completions = next(steps)
            for number, name in enumerate(names, 1):
                completion = completions[number - 1]
                self._show_growing(numbered(number, name), completion, steps, stopped)
        self._say_forgetting(completions[0])
        return completions

    def _show_growing(
        self, name: str, completion: Completion, steps: Iterator[object], stopped: Stopped
    ) -> None:
        """Show one completion until it has ended, or Ctrl-C was pressed."""
        self.console.begin(name)
        shown = 0
        while True:
            text = self._kept(completion)
            self.console.write(text[shown:])
            shown = max(shown, len(text))
            if completion.finish_reason is not None or stopped():
                break
            next(steps)
        self.console.end()

    def _kept(self, completion: Completion) -> str:
        """Return the text so far; white space at its end may be the end of the speech."""
        return tidy(completion.text) if self.is_named else completion.text

    def _explain(self, turn: Turn | None, stopped: bool) -> None:
        """Say why there is no answer, or why it ends where it does."""
        if turn is None and not stopped:
            self.console.note("(nothing is said; /retry asks again)")
        elif stopped:
            self.console.note("(stopped)")
        elif turn is not None and turn.cut and self.is_named:
            goes_on = "" if self.room is not None else "; Enter: it goes on"
            tokens = self.actor.controls.max_new_tokens
            self.console.note(f"(cut after {tokens} tokens{goes_on})")

    def _say_forgetting(self, completion: Completion) -> None:
        if not self.said_forgetting and self.actor.is_past_context(completion):
            self.said_forgetting = True
            self.console.note(
                f"(the model looks back on {self.actor.context} tokens: from here on it forgets "
                "how the conversation began)"
            )


def is_cut(completion: Completion) -> bool:
    """Return whether a completion did not end by itself."""
    return completion.finish_reason != "stop"


def numbered(number: int, name: str) -> str:
    """Return what is shown before one of several answers."""
    return f"{number}  {name}".rstrip()
