"""Records of JSON files as pieces: conversations of messages, questions with answers, or rows."""

from collections.abc import Iterator, Sequence
from itertools import chain

from chatgot.data.preparation.pieces import DocumentStart, Piece
from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.columns import choose_columns
from chatgot.data.preparation.readers.json_fields import text_field
from chatgot.data.preparation.readers.rows_to_pieces import RowsToPieces
from chatgot.data.preparation.readers.speeches import passage_of, shown, speech_of

# Lists of messages, in files for fine-tuning and in transcripts
CONVERSATIONS = (
    *("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "utterances"),
    *("lines", "transcript", "chat", "log"),
)
SPEAKERS = ("name", "speaker", "author", "character", "user_name", "sender")
ROLES = ("role", "from", "user", "who", "by")
CONTENTS = ("content", "value", "text", "message", "line", "utterance", "body", "content_text")
TITLES = ("title", "name", "id", "episode", "conversation_id")
ROLE_NAMES = {
    "user": "User",
    "human": "User",
    "prompter": "User",
    "assistant": "Assistant",
    "gpt": "Assistant",
    "bot": "Assistant",
    "chatbot": "Assistant",
    "chatgpt": "Assistant",
    "bing": "Assistant",
    "bard": "Assistant",
    "model": "Assistant",
    "ai": "Assistant",
}
SYSTEM_ROLES = frozenset(("system", "developer"))
TOOL_ROLES = frozenset(
    ("tool", "function", "ipython", "observation", "function_call", "function_response")
)
# What somebody asks, in the order in which it is joined, and what is answered
ASKED_AND_ANSWERED = (
    (("prompt",), ("completion", "response", "chosen", "answer")),
    (("instruction", "input", "context"), ("output", "response")),
    (("question",), ("answer", "response", "output")),
)
SYSTEM_FIELDS = ("system", "system_prompt")
NOBODY = "Unknown"
SAMPLED_RECORDS = 200
SAMPLED_CHARACTERS = 1 << 20
MOST_FIELDS = 200  # of a record, and of all sampled ones
LONGEST_FIELD_NAME = 200

Record = dict[str, object]


def pieces_of_records(
    records: Iterator[object], options: ReadingOptions, findings: Findings
) -> Iterator[Piece]:
    """Yield what records say; a conversation, a question with its answer, is a document.

    Messages that are records themselves are one conversation. All others are rows: fields are
    their columns, chosen by the first ones.
    Raises: UnreadableError.
    """
    rows: _Rows | None = None
    messages: MessageReader | None = None
    for record in records:
        if isinstance(record, str):
            record = {"text": record}
        if _is_message(record):
            if messages is None:
                messages = MessageReader(options, findings)
            yield from messages.pieces_of(record)
            continue
        said = _conversation(record, options, findings)
        if said is not None:
            if rows is not None:
                yield from rows.end()
            yield from said
            continue
        if not isinstance(record, dict):
            findings.left_out["values that are no objects"] += 1
            continue
        if rows is None:
            rows = _Rows(options, findings)
        yield from rows.take(flat_fields(record))
    if rows is not None:
        yield from rows.end()


def _conversation(
    record: object, options: ReadingOptions, findings: Findings
) -> Iterator[Piece] | None:
    """Return the document that a record is; None: it is a row."""
    if isinstance(record, list):
        messages = record if _are_messages(record) else None
        return None if messages is None else _spoken("", "", messages, options, findings)
    if not isinstance(record, dict):
        return None
    title = _title(record)
    system = text_field(record, *SYSTEM_FIELDS)
    for key in CONVERSATIONS:
        messages = record.get(key)
        if isinstance(messages, list) and _are_messages(messages):
            return _spoken(title, system, messages, options, findings)
    if options.text_column is None and options.speaker_column is None:
        turns = _asked_and_answered(record)
        if turns:
            return _spoken("", system, turns, options, findings)
    return None


def _are_messages(messages: Sequence[object]) -> bool:
    """Return whether the first of these is a message: who, and what."""
    first = messages[0] if messages else None
    return isinstance(first, dict) and any(key in first for key in (*SPEAKERS, *ROLES))


def _is_message(record: object) -> bool:
    """Return whether a record is a message with a role as in files for fine-tuning."""
    role = role_of(record)
    is_known = role in ROLE_NAMES or role in SYSTEM_ROLES or role in TOOL_ROLES
    return is_known and isinstance(record, dict) and ("content" in record or "value" in record)


def _asked_and_answered(record: Record) -> list[object]:
    """Return a question and its answer as messages; empty: the record is none."""
    for asked, answered in ASKED_AND_ANSWERED:
        answer = next((record[key] for key in answered if record.get(key)), None)
        if asked[0] not in record or answer is None:
            continue
        questions = [record[key] for key in asked if record.get(key)]
        messages = list(chain.from_iterable(q for q in questions if isinstance(q, list)))
        words = "\n".join(question for question in questions if isinstance(question, str))
        if words:
            messages.append({"role": "user", "content": words})
        if isinstance(answer, list):
            messages.extend(answer)
        else:
            messages.append({"role": "assistant", "content": answer})
        return messages
    return []


def _spoken(
    title: str,
    system: str,
    messages: Sequence[object],
    options: ReadingOptions,
    findings: Findings,
) -> Iterator[Piece]:
    """Yield a conversation: what `system` says first, then each message as a speech."""
    yield DocumentStart(title)
    reader = MessageReader(options, findings)
    later = []
    first = passage_of(system)
    if first is not None:
        yield first
    for message in messages:
        if role_of(message) not in SYSTEM_ROLES:
            later.append(message)
            continue
        yield from reader.pieces_of(message)
    for message in later:
        yield from reader.pieces_of(message)


def role_of(message: object) -> str:
    """Return the role of a message in small letters; empty: it has none."""
    return text_field(message, *ROLES).strip().casefold()


class MessageReader:
    """Turns messages into pieces: `name` of the message, else its role's name."""

    def __init__(self, options: ReadingOptions, findings: Findings) -> None:
        own_speaker = () if options.speaker_column is None else (options.speaker_column,)
        own_text = () if options.text_column is None else (options.text_column,)
        self._names = (*own_speaker, *SPEAKERS)
        self._contents = (*own_text, *CONTENTS)
        self._findings = findings

    def pieces_of(self, message: object) -> Iterator[Piece]:
        """Yield what a message says; nothing where it has no text."""
        left_out = self._findings.left_out
        if not isinstance(message, dict):
            left_out["values that are no messages"] += 1
            return
        role = role_of(message)
        if role in TOOL_ROLES:
            left_out["messages of tools"] += 1
            return
        text = self._text(message)
        if role in SYSTEM_ROLES:
            piece: Piece | None = passage_of(text)
        else:
            name = text_field(message, *self._names) or ROLE_NAMES.get(role, "")
            piece = speech_of(name or text_field(message, *ROLES) or NOBODY, text)
        if piece is None:
            left_out["messages without text"] += 1
        else:
            yield piece

    def _text(self, message: Record) -> str:
        for key in self._contents:
            content = message.get(key)
            if isinstance(content, str):
                return content
            if isinstance(content, list):
                return self._text_of_parts(content)
        return ""

    def _text_of_parts(self, parts: Sequence[object]) -> str:
        texts = []
        for part in parts:
            words = part if isinstance(part, str) else text_field(part, "text")
            if words:
                texts.append(words)
            else:
                self._findings.left_out["parts of messages that are no text"] += 1
        return "\n".join(texts)


class _Rows:
    """Records that are rows; the first ones wait until the columns are chosen."""

    def __init__(self, options: ReadingOptions, findings: Findings) -> None:
        self._options = options
        self._findings = findings
        self._waiting: list[dict[str, str]] = []
        self._size = 0
        self._names: tuple[str, ...] = ()
        self._pieces: RowsToPieces | None = None

    def take(self, row: dict[str, str]) -> Iterator[Piece]:
        """Yield what can be told once a row has come."""
        if self._pieces is not None:
            yield from self._pieces.pieces_of([row.get(name, "") for name in self._names])
            return
        self._waiting.append(row)
        self._size += sum(map(len, row.values()))
        if len(self._waiting) >= SAMPLED_RECORDS or self._size > SAMPLED_CHARACTERS:
            yield from self.end()

    def end(self) -> Iterator[Piece]:
        """Yield the rows that wait."""
        if not self._waiting:
            return
        if self._pieces is None:
            names = tuple(dict.fromkeys(chain.from_iterable(self._waiting)))[:MOST_FIELDS]
            if not names:
                raise UnreadableError("its objects have no fields with text")
            rows = [[row.get(name, "") for name in names] for row in self._waiting]
            columns = choose_columns(names, rows, self._options, self._findings)
            self._names = names
            self._pieces = RowsToPieces(columns, self._findings)
        for row in self._waiting:
            yield from self._pieces.pieces_of([row.get(name, "") for name in self._names])
        self._waiting.clear()


def flat_fields(record: Record) -> dict[str, str]:
    """Return the fields of a record as texts; those of an object within it as `outer.inner`."""
    flat: dict[str, str] = {}
    for key, value in record.items():
        if isinstance(value, str):
            flat[key[:LONGEST_FIELD_NAME]] = value
        elif isinstance(value, dict):
            for inner, text in value.items():
                cell = _cell(text)
                if cell is not None:
                    flat[f"{key}.{inner}"[:LONGEST_FIELD_NAME]] = cell
        else:
            cell = _cell(value)
            if cell is not None:
                flat[key[:LONGEST_FIELD_NAME]] = cell
        if len(flat) >= MOST_FIELDS:
            break
    return flat


def _cell(value: object) -> str | None:
    """Return a value as a cell; None: no cell holds it."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return str(value)
    return None


def _title(record: Record) -> str:
    for key in TITLES:
        value = record.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return shown(str(value))
    return ""
