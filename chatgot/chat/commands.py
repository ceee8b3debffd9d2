"""Which commands are there, and what does each of them do?"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from chatgot.atomic_file import atomic_file
from chatgot.chat.console import Leave
from chatgot.chat.conversation import conversation_of
from chatgot.chat.limits import read_number, read_whole_number
from chatgot.chat.names import AUTO, nearest, split_names
from chatgot.chat.session import Session
from chatgot.chat.transcript import Settings, Transcript, read_transcript, write_transcript
from chatgot.errors import ConfigError
from chatgot.sampling.originality import LEAST_COPY, in_words, originality_of

MOST_NAMES_SHOWN = 24
TURNS_SHOWN = 4  # of a conversation that was loaded


@dataclass(frozen=True)
class Command:
    """One command.

    takes: what Tab completes after it: "name", "names", "file" or nothing.
    """

    run: Callable[[Session, str], None]
    argument: str
    help: str
    takes: str = ""


def be(session: Session, argument: str) -> None:
    """Change who the person is."""
    if argument:
        session.user = session.meant(argument)
    say_who(session)


def answer_as(session: Session, argument: str) -> None:
    """Change who answers, and leave the room."""
    if argument.casefold() == AUTO:
        session.character = AUTO
        session.room = None
    elif argument:
        session.character = session.meant(argument)
        session.room = None
    say_who(session)


def enter_room(session: Session, argument: str) -> None:
    """Let the model choose who speaks next, among these names or all."""
    names = split_names(argument, session.everyone)
    session.room = [session.meant(name) for name in names]
    if not session.candidates():
        session.room = None
        raise ConfigError("the model knows no speakers: name those who are here, /room NAME, NAME")
    if not session.is_named:
        session.character = AUTO
        session.user = session.user or session.candidates()[0]
    say_who(session)


def say_who(session: Session) -> None:
    """Say who takes part."""
    session.console.note(who(session))


def who(session: Session) -> str:
    """Return in words who takes part."""
    if not session.is_named:
        if session.user or session.character:
            missing = "/with NAME: who answers?" if session.user else "/as NAME: who are you?"
            return f"one of the two is not named yet. {missing}"
        return "The text has no speakers: the model goes on with what you type."
    if session.room is None:
        answers = "the model chooses who answers" if session.character == AUTO else ""
        return f"You are {session.user}, {answers or f'{session.character} answers'}."
    here = ", ".join(session.room) if session.room else "everyone the model knows"
    return (
        f"In the room: {here}. You are {session.user}. Type a line to join in, "
        "Enter lets the next one speak, /watch 10 lets them talk."
    )


def list_names(session: Session, argument: str) -> None:
    """Show the known speakers, or those that are like a name."""
    speakers = session.actor.speakers
    if argument:
        names = set(nearest(argument, session.actor.known, MOST_NAMES_SHOWN))
        speakers = [speaker for speaker in speakers if speaker.name in names]
    if not speakers:
        session.console.note("no such speaker is in the training text")
        return
    shown = [f"{speaker.name} {speaker.lines:,}" for speaker in speakers[:MOST_NAMES_SHOWN]]
    more = len(speakers) - len(shown)
    rest = f", and {more:,} more" if more else ""
    session.console.note(f"speakers and their lines in the training text: {', '.join(shown)}{rest}")


def watch(session: Session, argument: str) -> None:
    """Let them talk for a number of turns."""
    session.watch(read_whole_number("watch", argument or "10", "/watch"))


def retry(session: Session, argument: str) -> None:
    """Let the model answer again."""
    session.retry()


def pick(session: Session, argument: str) -> None:
    """Write several answers and let the person choose."""
    session.pick(read_whole_number("pick", argument or "5", "/pick"))


def choose_version(session: Session, argument: str) -> None:
    """Let the person choose among the answers that there were in this place."""
    session.choose()


def undo(session: Session, argument: str) -> None:
    """Take back the last line and its answer."""
    taken = session.conversation.undo()
    if not taken:
        raise ConfigError("nothing has been said yet")
    first = taken[0].text.split("\n")[0]
    speaker = f"{taken[0].name}: " if taken[0].name else ""
    session.console.note(f"taken back: {speaker}{first}{' ...' if first != taken[0].text else ''}")


def edit(session: Session, argument: str) -> None:
    """Let the person edit the last line that was typed, and the model answer again."""
    before = session.conversation.last
    turn = session.conversation.undo_to_typed()
    if turn is None:
        raise ConfigError("you have said nothing yet")
    line = ""
    with suppress(EOFError, KeyboardInterrupt):
        line = session.console.read(turn.name, default=turn.text.strip("\n")).strip()
    if line:
        session.say(line)
    else:
        session.conversation.last = before
        session.console.note("all stays as it was")


def start_again(session: Session, argument: str) -> None:
    """Forget all that has been said."""
    session.conversation = conversation_of(session.conversation.opening, [])
    session.said_forgetting = False
    session.console.note("a new conversation")


def set_opening(session: Session, argument: str) -> None:
    """Change the text before all turns."""
    session.conversation.opening = argument
    _, unknown = session.actor.vocabulary.replace_unknown(argument)
    session.warn_unknown(unknown)
    session.console.note("the model reads it before all turns" if argument else "no text before")


def set_temperature(session: Session, argument: str) -> None:
    """Change or show the temperature."""
    controls = session.actor.controls
    if argument:
        temperature = read_number("temperature", argument, "/temperature")
        session.actor.controls = replace(controls, temperature=temperature)
    session.console.note(f"temperature {session.actor.controls.temperature:g}")


def set_seed(session: Session, argument: str) -> None:
    """Change or show the seed."""
    if argument:
        seed = read_whole_number("seed", argument, "/seed")
        session.actor.controls = replace(session.actor.controls, seed=seed)
    seed = session.actor.controls.seed
    session.console.note(f"seed {seed}: with --seed {seed} and the same lines, the same answers")


def save(session: Session, argument: str) -> None:
    """Write the conversation to a file."""
    path = file_named(argument, "/save")
    turns = session.conversation.turns
    if not turns:
        raise ConfigError("nothing has been said yet")
    if path.resolve() not in session.saved and os.path.lexists(path):
        answer = session.console.ask(f"{path} exists. Replace it? y or n: ")
        if answer.strip().casefold() not in ("y", "yes"):
            session.console.note("not saved")
            return
    settings = Settings(
        session.user,
        session.character,
        session.room,
        session.actor.controls.seed,
        session.actor.controls.temperature,
    )
    content = write_transcript(path, Transcript(session.conversation.opening, turns, settings))
    try:
        with atomic_file(path) as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
    session.saved.add(path.resolve())
    session.console.note(f"saved: {path}")


def load(session: Session, argument: str) -> None:
    """Go on with a conversation from a file."""
    path = file_named(argument, "/load")
    transcript = read_transcript(path, session.user)
    settings = transcript.settings
    if settings is not None:
        session.user = settings.user
        session.character = settings.character
        session.room = settings.room
        controls = session.actor.controls
        session.actor.controls = replace(
            controls, seed=settings.seed, temperature=settings.temperature
        )
    session.conversation = conversation_of(transcript.opening, transcript.turns)
    session.said_forgetting = False
    earlier = len(transcript.turns) - TURNS_SHOWN
    if earlier > 0:
        session.console.note(f"({earlier} earlier turns)")
    for turn in transcript.turns[-TURNS_SHOWN:]:
        session.console.begin(turn.name)
        session.console.write(turn.text)
        session.console.end()
    say_who(session)


def show_copied(session: Session, argument: str) -> None:
    """Show the model's own turns, and mark in them what is copied from its training text."""
    turns = [turn for turn in session.conversation.turns if not turn.typed]
    if not turns:
        session.console.note("the model has said nothing yet")
        return
    index = session.actor.index()
    if index is None:
        session.console.note("the text that the model was trained on is not here to compare with")
        return
    measured = originality_of([turn.text for turn in turns], index)
    for turn, copies in zip(turns, measured.copies, strict=True):
        session.console.begin(turn.name)
        done = 0
        for start, end in copies:
            session.console.write(turn.text[done:start])
            session.console.write(turn.text[start:end], marked=True)
            done = end
        session.console.write(turn.text[done:])
        session.console.end()
    session.console.note(
        f"marked: at least {LEAST_COPY} characters in a row of the training text; "
        f"{in_words(measured)}"
    )


def file_named(argument: str, command: str) -> Path:
    """Return the file that a command names. Raises: ConfigError."""
    if not argument:
        raise ConfigError(f"{command} FILE: a file is missing")
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:  # ~name of nobody
        raise ConfigError(f"{argument}: {error}") from error


def show_help(session: Session, argument: str) -> None:
    """Show all commands, or one."""
    names = [name for name in COMMANDS if not argument or name == argument.removeprefix("/")]
    for name in names or COMMANDS:
        command = COMMANDS[name]
        session.console.note(f"{f'/{name} {command.argument}'.strip():<20} {command.help}")
    if not argument:
        session.console.note("Ctrl-C stops an answer, Ctrl-D leaves, Tab completes names and files")


def leave(session: Session, argument: str) -> None:
    """End the conversation."""
    raise Leave


COMMANDS = {
    "as": Command(be, "NAME", "who you are", "name"),
    "with": Command(answer_as, "NAME|auto", "who answers; auto: the model chooses", "name"),
    "room": Command(
        enter_room, "[NAME, ...]", "a room of characters: the model chooses who speaks", "names"
    ),
    "watch": Command(watch, "[N]", "they talk by themselves, N turns (10); Ctrl-C stops them"),
    "retry": Command(retry, "", "another answer in place of the last one"),
    "pick": Command(pick, "[N]", "N answers at once (5); choose one"),
    "versions": Command(choose_version, "", "all answers there were in this place; choose one"),
    "undo": Command(undo, "", "take back the last line and its answer"),
    "edit": Command(edit, "", "change your last line and get a new answer"),
    "new": Command(start_again, "", "start again"),
    "save": Command(save, "FILE", "write the conversation as text, or as JSON (.json)", "file"),
    "load": Command(load, "FILE", "go on with a conversation from a file", "file"),
    "temperature": Command(
        set_temperature, "[X]", "below 1: likelier words; above 1: more varied ones; 0: no chance"
    ),
    "seed": Command(set_seed, "[N]", "show or change the seed, which makes answers repeatable"),
    "system": Command(set_opening, "[TEXT]", "a text before all turns, such as a scene's heading"),
    "copied": Command(show_copied, "", "mark what the model copied from its training text"),
    "who": Command(list_names, "[NAME]", "the speakers of the training text", "name"),
    "help": Command(show_help, "", "these lines"),
    "quit": Command(leave, "", "leave"),
}


def run_command(session: Session, line: str) -> None:
    """Do what a line that begins with a slash says.

    Raises: ConfigError; Leave.
    """
    word, _, argument = line.removeprefix("/").partition(" ")
    command = COMMANDS.get(word.casefold())
    if command is None:
        near = nearest(word, list(COMMANDS))
        hint = f"did you mean /{' or /'.join(near)}?" if near else "/help shows all commands"
        raise ConfigError(f"/{word} is no command: {hint}")
    command.run(session, argument.strip())
