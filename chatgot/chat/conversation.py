"""What has been said: turns, and what was said in the same place instead of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from chatgot.sampling.speeches import Speech


@dataclass(eq=False)
class Turn:
    """What one speaker said in one place of a conversation.

    name: empty: nobody's, where a text has no speakers.
    typed: by the person; else the model wrote it.
    cut: the answer was stopped, or has as many tokens as it may have: it could go on.
    previous: what was said before; None: nothing was.
    """

    name: str
    text: str
    typed: bool
    cut: bool = False
    previous: "Turn | None" = None


@dataclass
class Conversation:
    """A tree of turns, of which the path to `last` has been said.

    What was taken back stays in the tree, so that the model is never asked for it again.

    opening: a text of nobody before all turns, such as a scene's heading; maybe empty.
    """

    opening: str = ""
    last: Turn | None = None
    _answers: list[Turn] = field(default_factory=list)  # of the model, in all places
    _drawn: dict[int, int] = field(default_factory=dict)  # by depth: answers that were begun

    @property
    def turns(self) -> list[Turn]:
        """Return what has been said, from the first turn to the last."""
        turns = []
        turn = self.last
        while turn is not None:
            turns.append(turn)
            turn = turn.previous
        return turns[::-1]

    @property
    def speeches(self) -> list[Speech]:
        """Return what the model reads: the opening and all turns."""
        opening = [Speech("", self.opening)] if self.opening else []
        return opening + [Speech(turn.name, turn.text) for turn in self.turns]

    @property
    def depth(self) -> int:
        """Return the number of turns."""
        return len(self.turns)

    @property
    def names(self) -> list[str]:
        """Return who has spoken, in the order of their first words."""
        return list(dict.fromkeys(turn.name for turn in self.turns if turn.name))

    def say(self, name: str, text: str) -> None:
        """Add what the person typed."""
        self.last = Turn(name, text, typed=True, previous=self.last)

    def answer(self, name: str, text: str, *, cut: bool = False) -> Turn:
        """Add what the model wrote, and return it."""
        turn = Turn(name, text, typed=False, cut=cut, previous=self.last)
        self._answers.append(turn)
        self.last = turn
        return turn

    def go_on(self, text: str, *, cut: bool = False) -> None:
        """Add more text to the last answer, in its place."""
        assert self.last is not None
        before = self.last
        self.last = before.previous
        self.answer(before.name, before.text + text, cut=cut)

    def next_choice(self) -> int:
        """Count one more answer that is drawn after the last turn; return its number, from 0.

        Answers of other turns at the same depth count too: a line that is taken back and typed
        again gets another answer.
        """
        number = self._drawn.get(self.depth, 0)
        self._drawn[self.depth] = number + 1
        return number

    def retract_answer(self) -> bool:
        """Take back the last turn if the model wrote it; return whether it did."""
        if self.last is None or self.last.typed:
            return False
        self.last = self.last.previous
        return True

    def undo(self) -> list[Turn]:
        """Take back the last turn, and the typed line that it answers; return them, in order.

        Empty: nothing has been said.
        """
        taken: list[Turn] = []
        if self.last is not None:
            taken.insert(0, self.last)
            was_typed = self.last.typed
            self.last = self.last.previous
            if not was_typed and self.last is not None and self.last.typed:
                taken.insert(0, self.last)
                self.last = self.last.previous
        return taken

    def undo_to_typed(self) -> Turn | None:
        """Take back the last typed line and all after it; return it. None: nothing was typed."""
        typed = [turn for turn in self.turns if turn.typed]
        if not typed:
            return None
        self.last = typed[-1].previous
        return typed[-1]

    def versions(self) -> list[Turn]:
        """Return all answers in the place of the last one, the oldest first."""
        if self.last is None or self.last.typed:
            return []
        return [turn for turn in self._answers if turn.previous is self.last.previous]

    def replace_last(self, turn: Turn) -> None:
        """Let one of the versions be the last answer."""
        self.last = turn


def conversation_of(opening: str, turns: Sequence[Turn]) -> Conversation:
    """Return a conversation in which these turns have been said."""
    conversation = Conversation(opening)
    for turn in turns:
        if turn.typed:
            conversation.say(turn.name, turn.text)
        else:
            conversation.answer(turn.name, turn.text, cut=turn.cut)
    return conversation


def plain_text(speeches: Sequence[Speech]) -> str:
    """Return what was said where there are no speakers: one text without breaks."""
    return "".join(speech.text for speech in speeches)
