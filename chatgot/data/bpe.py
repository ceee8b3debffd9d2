r"""The subwords of a text of one's own: byte-level BPE, trained on the text itself.

The words that it merges bytes in are those of Qwen2's regex, which llama.cpp knows by name. A token
has line feeds at its end at most, so a line that begins with a letter or a sign begins with a
token: that is what speakers' lines need. On English plays its texts are 9 % shorter than those of
GPT-2's regex, which makes a token of its own of each line feed (`.\n\n` is one token here, not
three), and it is as fast.
"""

import re
from collections.abc import Generator, Iterable, Iterator
from itertools import chain

from chatgot.data.subwords import LONGEST_PIECE, Subwords, can_begin_piece
from chatgot.data.tokenizer_json import QWEN2_WORDS
from chatgot.data.vocabulary import END_OF_TEXT, DocumentSplitter, split_documents

LEAST_TOKENS = 257  # the end-of-text token and the 256 bytes
LEAST_COUNT = 2  # of a pair that is merged: a text that occurs once needs no token
# The trainer takes about 100 bytes of memory for each byte of words that it has not seen before
# (measured: 460 MB for 4 MB of made-up Chinese), and Chinese has hardly other words
SAMPLE_BYTES = 4_000_000
# Each merge goes through the whole word: one as long as a file would take hours
LONGEST_WORD = 256  # characters
_LONG_RUN = re.compile(rf"\S{{{LONGEST_WORD + 1},}}|\s{{{LONGEST_WORD + 1},}}")


def train_subwords(chunks: Iterable[str], vocab_size: int) -> Subwords:
    """Train byte-level BPE on the chunks of a text; the end-of-text token is id 0.

    A word that reaches over two chunks counts as two. The same chunks give the same subwords, in
    any order and on any number of cores. Memory grows with the different words, not with the text.

    chunks: see `text_blocks` and `even_sample`.
    vocab_size: the most tokens; a short text has fewer.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=LEAST_COUNT,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = chain.from_iterable(map(split_documents, chunks))
    pieces = chain.from_iterable(map(_without_long_words, documents))
    tokenizer.train_from_iterator(pieces, trainer)
    return Subwords.from_json(tokenizer.to_str())


def even_sample(blocks: Iterable[str], share: float) -> Iterator[str]:
    """Yield a share of the blocks of a text, evenly spread over it; 1 or more: all of them."""
    share = min(share, 1.0)
    for number, block in enumerate(blocks):
        if int((number + 1) * share) > int(number * share):
            yield block


def text_blocks(chunks: Iterable[str], characters: int) -> Iterator[str]:
    """Yield the first characters of a text in blocks that hardly a word reaches over.

    They are without end-of-text tokens, each of which counts as a character. They do not depend on
    where the chunks end, and have LONGEST_PIECE characters at most.
    """
    held = ""  # of this document
    left = characters
    for documents in documents_of(chunks):
        for number, document in enumerate(documents):
            if number > 0:  # after an end-of-text token
                yield held
                held = ""
                left -= 1
            if left <= 0:
                break
            held += document[:left]
            left -= len(document)
            held = yield from _whole_blocks(held)
        if left <= 0:
            break
    yield held


def text_size(chunks: Iterable[str]) -> tuple[int, int]:
    """Return how many characters a text has, and bytes in UTF-8; an end-of-text token is one."""
    characters = 0
    in_utf_8 = 0
    for documents in documents_of(chunks):
        ends = len(documents) - 1
        characters += ends + sum(map(len, documents))
        in_utf_8 += ends + sum(len(document.encode()) for document in documents)
    return characters, in_utf_8


def documents_of(chunks: Iterable[str]) -> Iterator[list[str]]:
    """Yield parts of a text as DocumentSplitter cuts them."""
    splitter = DocumentSplitter()
    for chunk in chunks:
        yield splitter.feed(chunk)
    yield splitter.end()


def _whole_blocks(text: str) -> Generator[str, None, str]:
    """Yield the blocks of a document that are whole by now; return the rest."""
    start = 0
    while len(text) - start > LONGEST_PIECE:
        window = text[start : start + LONGEST_PIECE + 1]
        length = _last_line_start(window) or LONGEST_PIECE
        yield window[:length]
        start += length
    return text[start:]


def _last_line_start(text: str) -> int:
    """Return where the last line of a text begins that begins with a word; 0: there is none."""
    line_feed = text.rfind("\n", 0, len(text) - 1)
    while line_feed >= 0 and not can_begin_piece(text[line_feed + 1]):
        line_feed = text.rfind("\n", 0, line_feed)
    return line_feed + 1


def _without_long_words(block: str) -> Iterator[str]:
    """Yield a block, cut within the words that are far too long to be any."""
    start = 0
    for run in _LONG_RUN.finditer(block):
        for cut in range(run.start() + LONGEST_WORD, run.end(), LONGEST_WORD):
            yield block[start:cut]
            start = cut
    yield block[start:]
