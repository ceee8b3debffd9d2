"""The tokens that a text consists of, and text <-> ids.

A line that is exactly `<|endoftext|>` is one token: it ends a document. Its line feed is a
character like any other. Inside a longer line the same characters are only characters.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0  # in a vocabulary of characters
CHUNK = 1 << 20  # ids that are decoded at a time
Ids = NDArray[np.uint16] | NDArray[np.uint32]  # of a text, (N,)
Kind = Literal["characters", "subwords"]  # what most tokens are
# A whole line. It begins with what is searched for, since `^` would be tried at each character;
# "\n" alone ends a line, not the other line ends of Unicode
_NAME = re.escape(END_OF_TEXT)
END_OF_TEXT_LINE = re.compile(rf"{_NAME}(?<![^\n]{_NAME})(?![^\n])")


def split_documents(text: str) -> list[str]:
    """Return what is before, between and after the lines of a text that are END_OF_TEXT."""
    if END_OF_TEXT not in text:  # far faster than the regex, and most texts have none
        return [text]
    return END_OF_TEXT_LINE.split(text)


class Decoder(Protocol):
    """Turns ids into text one by one: a character may need several tokens."""

    @property
    def holds(self) -> bool:
        """Whether a part of a character waits for the rest."""
        ...

    def feed(self, token: int) -> str:
        """Take the next id; return the characters that are whole by now."""
        ...

    def end(self) -> str:
        """Return the rest when no further id comes: a torn character is shown as U+FFFD."""
        ...


class Vocabulary(Protocol):
    """The tokens of a model: characters, or the subwords of a tokenizer that came with a model."""

    @property
    def kind(self) -> Kind:
        """What the tokens are called."""
        ...

    @property
    def tokens(self) -> list[str]:
        """The name of each id: what a checkpoint stores."""
        ...

    @property
    def end_of_text_id(self) -> int:
        """The token that ends a document: never shown; sampling stops at it."""
        ...

    @property
    def line_feeds(self) -> frozenset[int]:
        """The ids whose text has a line feed in it."""
        ...

    def __len__(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises: KeyError for a character outside the vocabulary."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; the end-of-text token shows nothing."""
        ...

    def bytes_of(self, token: int) -> bytes:
        """Return what a token adds to a text, in UTF-8; the end-of-text token adds nothing."""
        ...

    def last_cut(self, text: str) -> int:
        """Return the last place of a text at which it may be cut: its ids are those of both parts.

        Whatever follows the text, the ids before this place stay the same. 0: there is no place.
        """
        ...

    def decoder(self) -> Decoder:
        """Return a decoder for a text that grows."""
        ...

    def chunks_of_text(self, ids: Ids, document_end: str) -> Iterator[str]:
        """Yield the text of many ids in chunks, and `document_end` for each end-of-text token.

        Memory does not grow with the text.
        """
        ...

    def lengths(self, ids: Ids) -> NDArray[np.int64]:
        """Return how many characters begin in each token, in the text of `chunks_of_text`."""
        ...

    def can_write(self, text: str) -> bool:
        """Return whether all characters of a text are in the vocabulary."""
        ...

    def replace_unknown(self, text: str) -> tuple[str, str]:
        """Replace what is outside the vocabulary visibly; return the text and those characters.

        A line that is the end-of-text token stays.
        """
        ...


@dataclass(frozen=True)
class Characters:
    """The end-of-text token as id 0, then one token per character: id i + 1 is `characters[i]`."""

    characters: str
    kind: ClassVar[Kind] = "characters"

    @classmethod
    def from_tokens(cls, tokens: list[str]) -> "Characters":
        """Return the vocabulary whose `tokens` these are.

        Raises: ValueError unless END_OF_TEXT comes first and the rest are distinct characters.
        """
        characters = "".join(map(str, tokens[1:]))
        if tokens != [END_OF_TEXT, *characters]:
            raise ValueError(f"not a vocabulary of {END_OF_TEXT} and then single characters")
        if len(set(characters)) < len(characters):
            raise ValueError("a vocabulary with a character that occurs twice")
        return cls(characters)

    @property
    def tokens(self) -> list[str]:
        """The text of each id, END_OF_TEXT first: what a checkpoint stores."""
        return [END_OF_TEXT, *self.characters]

    @property
    def end_of_text_id(self) -> int:
        return END_OF_TEXT_ID

    @property
    def line_feeds(self) -> frozenset[int]:
        return frozenset(self.encode("\n") if self.can_write("\n") else ())

    def __len__(self) -> int:
        return 1 + len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. Raises: KeyError for a character outside the vocabulary."""
        id_of = {token: i for i, token in enumerate(self.tokens)}
        first_document, *further_documents = split_documents(text)
        ids = [id_of[character] for character in first_document]
        for document in further_documents:
            ids.append(END_OF_TEXT_ID)
            ids += [id_of[character] for character in document]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids`; the end-of-text token shows nothing."""
        return "".join(self.characters[i - 1] for i in ids if i != END_OF_TEXT_ID)

    def bytes_of(self, token: int) -> bytes:
        return self.decode([token]).encode("utf-8", "surrogatepass")

    def last_cut(self, text: str) -> int:
        return len(text)

    def decoder(self) -> "CharacterDecoder":
        return CharacterDecoder(self)

    def chunks_of_text(self, ids: Ids, document_end: str) -> Iterator[str]:
        """Yield the text of many ids in chunks, and `document_end` for each end-of-text token."""
        assert len(document_end) == 1
        points = np.frombuffer((document_end + self.characters).encode("utf-32-le"), dtype="<u4")
        for start in range(0, len(ids), CHUNK):
            yield points[ids[start : start + CHUNK]].tobytes().decode("utf-32-le")

    def lengths(self, ids: Ids) -> NDArray[np.int64]:
        return np.ones(len(ids), dtype=np.int64)

    def can_write(self, text: str) -> bool:
        return set(self.characters).issuperset(text)

    def replace_unknown(self, text: str) -> tuple[str, str]:
        """Replace what is outside the vocabulary visibly; return the text and those characters.

        A line that is the end-of-text token stays.
        """
        known = set(self.characters)
        documents = split_documents(text)
        unknown = "".join(sorted(set("".join(documents)) - known))
        substitute = next((mark for mark in "?_*#. " if mark in known), self.characters[0])
        replaced = [
            "".join(character if character in known else substitute for character in document)
            for document in documents
        ]
        return END_OF_TEXT.join(replaced), unknown


class CharacterDecoder:
    """Decodes one character per token."""

    holds = False

    def __init__(self, vocabulary: Characters) -> None:
        self._vocabulary = vocabulary

    def feed(self, token: int) -> str:
        return self._vocabulary.decode([token])

    def end(self) -> str:
        return ""


class DocumentSplitter:
    """Cuts a text that comes in chunks into documents, at the lines that are END_OF_TEXT.

    The documents do not depend on where the chunks end. At most one line that may become
    END_OF_TEXT is held back.
    """

    def __init__(self) -> None:
        self._held = ""  # the end of the text so far, where it may become END_OF_TEXT
        self._at_line_start = True  # what is held, or comes next, begins a line

    def feed(self, chunk: str) -> list[str]:
        """Take the next characters; return what is certain by now, never an empty list.

        Between each two of the returned strings is one END_OF_TEXT; the first goes on with the
        document that was the last one so far.
        """
        text = self._held + chunk
        last_line = text[text.rfind("\n") + 1 :]
        self._held = last_line if END_OF_TEXT.startswith(last_line) else ""
        return self._split(text.removesuffix(self._held))

    def end(self) -> list[str]:
        """Return the rest, as `feed` does."""
        rest = self._held
        self._held = ""
        return self._split(rest)

    def _split(self, text: str) -> list[str]:
        if not text:
            return [""]
        # What goes on with a line that has begun is never END_OF_TEXT
        line_end = 0
        if not self._at_line_start:
            line_end = text.find("\n") + 1 or len(text)
        self._at_line_start = text.endswith("\n")
        documents = split_documents(text[line_end:])
        documents[0] = text[:line_end] + documents[0]
        return documents
