"""What happens from line to line?"""

from chatgot.chat.commands import run_command, who
from chatgot.chat.console import Leave
from chatgot.chat.session import Session
from chatgot.errors import ConfigError


def talk(session: Session) -> None:
    """Read lines and do what they say, until there are no more."""
    hint = "type a line, or /help"
    while True:
        try:
            line = session.console.read(session.user if session.is_named else "", hint).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            continue  # the line was given up
        try:
            take_line(session, line)
        except ConfigError as error:
            session.console.note(str(error))
        except Leave:
            return
        hint = hint_for(session)


def take_line(session: Session, line: str) -> None:
    """Do what one line says: a command, nothing, or what the person says.

    Two slashes begin a line that is said with one.
    Raises: ConfigError; Leave.
    """
    if line.startswith("//"):
        session.say(line[1:])
    elif line.startswith("/"):
        run_command(session, line)
    elif line:
        session.say(line)
    else:
        session.say_nothing()


def hint_for(session: Session) -> str:
    """Return what an empty line would do; empty: nothing."""
    last = session.conversation.last
    if session.room is not None:
        return "Enter: the next one speaks"
    if last is not None and last.cut:
        return "Enter: it goes on"
    return ""


def greet(session: Session, model: str) -> None:
    """Say which model it is, who takes part, and how answers can be repeated.

    model: in words.
    """
    session.console.note(model)
    session.console.note(who(session))
    session.console.note(f"/help shows what you can do. seed {session.actor.controls.seed}")
