r"""The subwords of a tokenizer that came with a model, as a vocabulary.

A text is cut into documents, and each of these into pieces of at most LONGEST_PIECE characters,
which end at a line feed where they can. The ids of a text are those of its pieces in a row. Where a
line begins with a letter or a sign, such a cut changes nothing: no word of the known tokenizers
reaches over it. So a text may be encoded in parts, and a prompt has the ids that it would have in
the middle of a text.
"""

import codecs
import re
import unicodedata
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from chatgot.data.known_words import KnownWords, odd_characters
from chatgot.data.tokenizer_json import (
    BYTES_OF_TEXT,
    ByteLevelTokenizer,
    byte_letters,
    name_of_end,
    read_tokenizer_json,
)
from chatgot.data.vocabulary import CHUNK, DocumentSplitter, Ids, Kind

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Piece = str | None  # None: the end-of-text token
LONGEST_PIECE = 1 << 16  # characters
# Below, the regexes of the fast way (0.15 s for a process) would not pay
LEAST_FAST = 1 << 13  # characters
LETTER_OF_BYTE = {byte: letter for letter, byte in byte_letters().items()}  # for str.translate
# What every tokenizer has to show before it is used: scripts, white space, code, contractions
PROBE = (
    "ROMEO:\nIt's what they'll say, I'VE heard; don't  you?\n\nJULIET:\n\tWhat's  in a name? \n"
    "\n\n  Émile, naïve café.\r\n\r\n\r\nJosé…\n \nСлово — 1234567 раз\n"
    "κόσμος\n漢字かな交じり文。"
    "\n안녕하세요 세계\nשלום עולם \nمرحبا ١٢٣\nहिन्दी में\n🐉👩‍👩‍👧 ok🙂\n½ x² 3.14e-10\n"
    "def f(x):\n    return {'a': [x + 1], \"b\": None}  # !?\n\n"
    "/usr/bin\n.\n/x\n!!!\n\nEnd\n<|endoftext|> </s>\n"
    "<|im_start|>user\nhi<|im_end|>\n\n\n\u00a0nbsp\u2028line\u2003em \x00\x1f\u0085\nlast\n\n"
)


class Subwords:
    """The subwords of a tokenizer.json, byte-level BPE: they can write nearly any text.

    Some tokenizers lack the bytes of a few characters, such as control characters.

    json: the tokenizer.json as it was.
    end_of_text: the name of the token that ends a document.
    tokens: the name of each id, as in the tokenizer.json.
    """

    kind: ClassVar[Kind] = "subwords"

    def __init__(self, json: str, tokenizer: ByteLevelTokenizer, end_of_text: str) -> None:
        self.json = json
        self.end_of_text = end_of_text
        self.tokens = tokenizer.tokens
        self._id_of_end = self.tokens.index(end_of_text)
        self._bytes = _bytes_of_tokens(tokenizer)
        self._encodes = _load(tokenizer.copy)
        self._unknown = _unknown_characters(tokenizer.bytes)
        self._writes_all = tokenizer.bytes >= BYTES_OF_TEXT
        self._before = tokenizer.splits_before_line_feed
        self._words = KnownWords(self._encode_word) if tokenizer.is_plain_qwen2 else None
        self._prove(tokenizer.special)

    @classmethod
    def from_json(cls, text: str, end_of_text: str | None = None) -> "Subwords":
        """Return the vocabulary of a tokenizer.json.

        end_of_text: the special token that ends a document, where none has the name END_OF_TEXT.
        Raises: ValueError with the reason for a tokenizer that is not read here.
        """
        tokenizer = read_tokenizer_json(text)
        return cls(text, tokenizer, name_of_end(tokenizer, end_of_text))

    @property
    def end_of_text_id(self) -> int:
        return self._id_of_end

    @property
    def sha256(self) -> str:
        """Return a hash of all that the ids of a text depend on, in hex."""
        return sha256(f"{self.end_of_text}\0{self.json}".encode()).hexdigest()

    @property
    def line_feeds(self) -> frozenset[int]:
        """Return the ids whose text has a line feed in it."""
        return frozenset(i for i, text in enumerate(self._bytes) if b"\n" in text)

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises: KeyError for a lone surrogate, which is no text."""
        encoder = self.encoder()
        return encoder.feed(text) + encoder.end()

    def encode_pieces(self, pieces: Iterable[Piece]) -> list[int]:
        """Return the ids of pieces in a row."""
        pieces = list(pieces)
        together = sum(len(piece) for piece in pieces if piece is not None)
        ids: list[int] = []
        for piece in pieces:
            if piece is None:
                ids.append(self._id_of_end)
            else:
                ids += self.encode_piece(piece, together)
        return ids

    def encoder(self) -> "SubwordEncoder":
        """Return an encoder for a text that comes in chunks."""
        return SubwordEncoder(self)

    def encode_piece(self, text: str, together: int = 0) -> list[int]:
        """Return the ids of a text that is neither cut nor searched for ends of documents.

        together: characters of all the texts that are encoded with it.
        """
        if self._words is None or max(len(text), together) < LEAST_FAST:
            return self._encode_slowly(text)
        ids: list[int] = []
        start = 0
        for odd in odd_characters(text):
            if odd < start:
                continue
            begin = start + self.last_cut(text[start : odd + 1])
            end = _next_line_start(text, odd)
            ids += self._words.encode(text[start:begin])
            ids += self._encode_slowly(text[begin:end])
            start = end
        return ids + self._words.encode(text[start:])

    def _encode_word(self, word: str) -> Iterable[int]:
        """Return the ids of a word of the tokenizer's regex."""
        letters = word.encode().decode("latin-1").translate(LETTER_OF_BYTE)
        return [token.id for token in self._encodes.model.tokenize(letters)]

    def _encode_slowly(self, text: str) -> list[int]:
        """Return the ids of a text, all of it by the package `tokenizers`."""
        unknown = None if self.can_write(text) else self._unknown.search(text)
        if unknown:
            raise KeyError(unknown.group())
        try:
            ids: list[int] = self._encodes.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:  # half a surrogate pair
            raise KeyError(self.replace_unknown(text)[1][:1]) from error
        return ids

    def last_cut(self, text: str) -> int:
        """Return the last place where a text can be cut without a change of its ids; 0: nowhere."""
        line_feed = text.rfind("\n", 0, len(text) - 1)
        while line_feed >= 0 and not can_begin_piece(text[line_feed + 1]):
            line_feed = text.rfind("\n", 0, line_feed)
        return line_feed if line_feed >= 0 and self._before else line_feed + 1

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; special tokens show nothing, and torn characters U+FFFD."""
        return b"".join([self._bytes[i] for i in ids]).decode(errors="replace")

    def bytes_of(self, token: int) -> bytes:
        """Return what a token adds to a text in UTF-8: maybe a part of a character."""
        return self._bytes[token]

    def decoder(self) -> "SubwordDecoder":
        return SubwordDecoder(self)

    def chunks_of_text(self, ids: Ids, document_end: str) -> Iterator[str]:
        """Yield the text of many ids in chunks, and `document_end` for each end-of-text token."""
        bytes_of = list(self._bytes)
        bytes_of[self._id_of_end] = document_end.encode()
        utf_8 = codecs.getincrementaldecoder("utf-8")("replace")
        for start in range(0, len(ids), CHUNK):
            some = ids[start : start + CHUNK].tolist()
            is_last = start + CHUNK >= len(ids)
            yield utf_8.decode(b"".join([bytes_of[i] for i in some]), is_last)

    def lengths(self, ids: Ids) -> NDArray[np.int64]:
        """Return how many characters begin in each token, in the text of `chunks_of_text`."""
        first_bytes = [sum(byte & 0xC0 != 0x80 for byte in text) for text in self._bytes]
        first_bytes[self._id_of_end] = 1
        return np.array(first_bytes)[ids]

    def can_write(self, text: str) -> bool:
        if not self._writes_all:
            return self._unknown.search(text) is None
        return text.isascii() or _is_utf_8(text)  # ten times as fast

    def replace_unknown(self, text: str) -> tuple[str, str]:
        """Replace what cannot be written by `?`; return the text and those characters."""
        if self.can_write(text):
            return text, ""
        unknown = "".join(sorted(set(self._unknown.findall(text))))
        return self._unknown.sub("?", text), unknown

    def _prove(self, special: frozenset[int]) -> None:
        """Check on the probe that cuts change nothing and that decoding brings the text back.

        Raises: ValueError.
        """
        probe, _ = self.replace_unknown(PROBE)
        ids = self.encode_piece(probe)
        if not all(0 <= i < len(self) and i not in special for i in ids):
            raise ValueError("ordinary text becomes special tokens")
        if self.decode(ids) != probe:
            raise ValueError("a text that is encoded and decoded is not the same text")
        pieces: list[str] = []
        rest = probe
        while rest:
            cut = self.last_cut(rest)
            pieces.insert(0, rest[cut:])
            rest = rest[:cut]
        if [i for piece in pieces for i in self.encode_piece(piece)] != ids:
            raise ValueError("its words reach over the ends of lines")


class SubwordEncoder:
    """Encodes a text that comes in chunks; the ids do not depend on where the chunks end.

    At most LONGEST_PIECE characters are held back.
    """

    def __init__(self, vocabulary: Subwords) -> None:
        self._vocabulary = vocabulary
        self._splitter = DocumentSplitter()
        self._held = ""  # of this document, not in a piece yet

    def feed(self, chunk: str) -> list[int]:
        """Take the next characters; return the ids that are certain by now."""
        return self._vocabulary.encode_pieces(self.cut(chunk))

    def end(self) -> list[int]:
        """Return the rest."""
        return self._vocabulary.encode_pieces(self.cut_rest())

    def cut(self, chunk: str) -> list[Piece]:
        """Take the next characters; return the pieces that are whole by now, not encoded."""
        return self._take(self._splitter.feed(chunk))

    def cut_rest(self) -> list[Piece]:
        """Return the pieces of the rest, not encoded."""
        return self._take(self._splitter.end()) + self._end_document()

    def _take(self, documents: list[str]) -> list[Piece]:
        first, *further = documents
        pieces = self._go_on(first)
        for document in further:
            pieces += self._end_document()
            pieces.append(None)
            pieces += self._go_on(document)
        return pieces

    def _go_on(self, text: str) -> list[Piece]:
        """Take more of this document; return the pieces that are whole by now."""
        text = self._held + text
        pieces: list[Piece] = []
        start = 0
        while len(text) - start > LONGEST_PIECE:
            window = text[start : start + LONGEST_PIECE + 1]
            length = self._vocabulary.last_cut(window) or LONGEST_PIECE
            pieces.append(window[:length])
            start += length
        self._held = text[start:]
        return pieces

    def _end_document(self) -> list[Piece]:
        rest = self._held
        self._held = ""
        return [rest] if rest else []


class SubwordDecoder:
    """Shows a character when all of its bytes have come."""

    def __init__(self, vocabulary: Subwords) -> None:
        self._vocabulary = vocabulary
        self._utf_8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def holds(self) -> bool:
        return self._utf_8.getstate()[0] != b""

    def feed(self, token: int) -> str:
        return self._utf_8.decode(self._vocabulary.bytes_of(token))

    def end(self) -> str:
        return self._utf_8.decode(b"", final=True)


def _is_utf_8(text: str) -> bool:
    """Return whether UTF-8 can write a text: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unknown_characters(known: frozenset[int]) -> re.Pattern[str]:
    """Return what matches a character whose bytes are not all known, and half a surrogate pair."""
    ranges = ["\ud800-\udfff"]
    ranges += [re.escape(chr(byte)) for byte in range(0x80) if byte not in known]
    for first_byte in range(0xC2, 0xF5):
        if first_byte not in known:
            first, last = _characters_of(first_byte)
            ranges.append(f"{chr(first)}-{chr(last)}")
    return re.compile(f"[{''.join(ranges)}]")


def _characters_of(first_byte: int) -> tuple[int, int]:
    """Return the first and the last code point that begin with this byte in UTF-8."""
    if first_byte < 0xE0:
        return (first_byte & 0x1F) << 6, ((first_byte & 0x1F) << 6) + 0x3F
    if first_byte < 0xF0:
        first = (first_byte & 0x0F) << 12
        return max(first, 0x800), first + 0xFFF
    first = (first_byte & 0x07) << 18
    return max(first, 0x10000), min(first + 0x3FFFF, 0x10FFFF)


def _next_line_start(text: str, start: int) -> int:
    """Return where the next piece may begin, or the end of the text."""
    line_feed = text.find("\n", start)
    while 0 <= line_feed < len(text) - 1 and not can_begin_piece(text[line_feed + 1]):
        line_feed = text.find("\n", line_feed + 1)
    return line_feed + 1 if line_feed >= 0 else len(text)


def can_begin_piece(character: str) -> bool:
    """Return whether a piece may begin with this character, after a line feed.

    White space goes on with that before it; a slash goes on with signs in one known regex, and
    numbers are words of their own kind in some. Characters that Python does not know may be either.
    """
    if character.isspace() or character.isnumeric() or character in "/\u180e":
        return False
    category = unicodedata.category(character)
    return category[0] != "N" and category != "Cn"


def _bytes_of_tokens(tokenizer: ByteLevelTokenizer) -> list[bytes]:
    """Return what each token adds to a text, in UTF-8; a special one adds nothing."""
    letters = byte_letters()
    texts = []
    for i, name in enumerate(tokenizer.tokens):
        if i in tokenizer.special:
            texts.append(b"")
        elif i in tokenizer.added or not all(letter in letters for letter in name):
            texts.append(name.encode())
        else:
            texts.append(bytes([letters[letter] for letter in name]))
    return texts


def _load(copy: str) -> "Tokenizer":
    """Return what encodes. Raises: ValueError."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(copy)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"it cannot be loaded: {reason[:160]}") from error
