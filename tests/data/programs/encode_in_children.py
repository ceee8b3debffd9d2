"""Encode a text in two child processes; after a few batches, say their ids and wait.

Usage: encode_in_children.py TEXT TOKENIZER CACHE
"""

import sys
import time
from pathlib import Path

from chatgot.data import growing_ids, subword_children, subwords, token_cache
from chatgot.data.subwords import Subwords

BATCHES = 12  # before the first note, and some more

children = []


class Child(subword_children._Child):
    def __init__(self, about):
        super().__init__(about)
        children.append(self._process.pid)


def slow(batches, encode=subword_children._Team.encode):
    def encode_slowly(self, pieces):
        for number, ids in enumerate(encode(self, pieces)):
            yield ids
            if number == batches:
                print(*children, flush=True)
                time.sleep(60)

    return encode_slowly


growing_ids.NOTE_BYTES = 3000
token_cache.SUBWORD_CHUNK = 5000
subwords.LONGEST_PIECE = 1000
subword_children.LARGE = 0
subword_children.usable_cores = lambda: 2
subword_children.cpu_quota = lambda: None
subword_children._Child = Child
subword_children._Team.encode = slow(BATCHES)
text, tokenizer, cache = map(Path, sys.argv[1:])
vocabulary = Subwords.from_json(tokenizer.read_text(encoding="utf-8"))
token_cache.load_tokens(text, cache, vocabulary)
