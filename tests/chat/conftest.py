"""A conversation through a pipe."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from scripted_engine import SPEAKERS, VOCABULARY, ScriptedEngine

from chatgot.chat.console import Pipe
from chatgot.chat.session import Session
from chatgot.chat.speaking import Actor
from chatgot.chat.talk import talk
from chatgot.sampling.controls import Controls
from chatgot.sampling.speakers import Speaker


@dataclass
class Stage:
    """Plays typed lines; `session` and `engine` show what became of them."""

    capsys: pytest.CaptureFixture[str]
    engine: ScriptedEngine = field(default_factory=ScriptedEngine)
    controls: Controls = field(default_factory=Controls)
    speakers: Sequence[Speaker] = SPEAKERS
    user: str = "HORATIO"
    character: str = "HAMLET"
    context: int = 10_000

    def __post_init__(self) -> None:
        actor = Actor(self.engine, VOCABULARY, self.speakers, self.context, self.controls)
        self.session = Session(actor, Pipe(io.StringIO()), self.user, self.character)

    def play(self, *lines: str) -> tuple[str, str]:
        """Return what was said, and the notes."""
        self.session.console = Pipe(io.StringIO("".join(f"{line}\n" for line in lines)))
        talk(self.session)
        shown = self.capsys.readouterr()
        return shown.out, shown.err

    @property
    def turns(self) -> list[tuple[str, str]]:
        return [(turn.name, turn.text) for turn in self.session.conversation.turns]


@pytest.fixture
def stage(capsys: pytest.CaptureFixture[str]) -> Callable[..., Stage]:
    """Return a function that sets up a conversation; arguments are the stage's fields."""
    return lambda **fields: Stage(capsys, **fields)
