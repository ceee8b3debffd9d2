"""From prompts to texts, many at once: each text has a row in the key/value cache while it grows.

A step gives each text its next token, and reads parts of new prompts. The rows in use are always
the first ones, so that a step is one batch. What a text leaves in its row is kept for prompts that
begin in the same way: the next turn of a chat, or a second completion of one prompt.

Letters: B batch, T tokens, V vocabulary.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chatgot.data.vocabulary import END_OF_TEXT, Decoder, Vocabulary
from chatgot.model.gpt import GPT, Cache
from chatgot.sampling.controls import Controls
from chatgot.sampling.decoding import (
    Step,
    compiled_step,
    decode_step,
    graphed_step,
    sampling_model,
)
from chatgot.sampling.drawing import Drawer, draw, logprobs, top
from chatgot.sampling.key_value_cache import (
    Branching,
    KeyValueCache,
    Reading,
    tokens_looked_at,
)
from chatgot.sampling.prefixes import KeptPrefixes, as_ids, common_length
from chatgot.sampling.stops import Shown

logger = logging.getLogger(__name__)

READ_AT_ONCE = 256  # tokens of prompts that one step reads, so that the other texts go on meanwhile
KEPT_BYTES = 1 << 28  # of keys and values of finished texts, at most


@dataclass(frozen=True)
class Token:
    """One token and, where they were asked for, the model's log-probabilities (nats).

    The log-probabilities are the model's own, before any of the controls.
    logprob: None where it was not asked for, and for the first token of a text.
    top: the likeliest ids and their log-probabilities, the likeliest first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Request:
    """What one completion is to continue, and how.

    prompt: ids; an empty prompt starts a new document.
    choice: its number among several completions of one prompt and seed.
    top_logprobs: None: no log-probabilities; 0: those of the tokens; more: of so many others too.
    prompt_logprobs: also those of the prompt's tokens.
    """

    prompt: tuple[int, ...]
    controls: Controls
    choice: int = 0
    top_logprobs: int | None = None
    prompt_logprobs: bool = False


@dataclass
class Completion:
    """A text that grows; the engine writes it, whoever asked reads it.

    text: what may be shown by now; the beginning of a stop string is held back.
    tokens: all so far, those of held-back and cut-off text included, without the end-of-text token.
    finish_reason: None while it grows; `stop`: it ended by itself or at a stop; `length`: it has
    as many tokens as it may have; `cancelled`.
    stopped_by: the stop string, or the speaker's line, or the end-of-text token; "": none of them.
    forgot: the context was full, so its older half was forgotten.
    """

    request: Request
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    prompt_tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None
    stopped_by: str = ""
    forgot: bool = False


def window_start(length: int, context: int) -> int:
    """Return the index of the first token that a model still sees of a text of `length` tokens.

    A text that fits is seen whole. Each time that it outgrows the context, the older half is
    forgotten, so that a text of context + 1 tokens has a window of context // 2 + 1.
    """
    if length <= context:
        return 0
    hop = context - context // 2
    return -(-(length - context) // hop) * hop


@dataclass(eq=False)
class Text:
    """A completion on its way: in a row, or waiting for one.

    ids: the prompt and what was drawn.
    start: index of the first token of the row; length: how many tokens the row holds.
    reading: the row lacks more than the token drawn last.
    scored: how many tokens of the prompt have been read for their log-probabilities.
    """

    completion: Completion
    ids: list[int]
    drawer: Drawer
    decoder: Decoder
    shown: Shown
    start: int = 0
    length: int = 0
    reading: bool = True
    scored: int = 1

    @property
    def scores_prompt(self) -> bool:
        """Return whether the log-probabilities of the prompt are still to be found."""
        return self.completion.request.prompt_logprobs and not self.completion.tokens

    def read_again(self, start: int) -> None:
        """Empty the row; it is to be read from another token on."""
        self.start = start
        self.length = 0
        self.reading = True

    def in_row(self) -> NDArray[np.int64]:
        """Return the ids that the row holds, (length,)."""
        return as_ids(self.ids[self.start : self.start + self.length])


class Engine:
    """Writes the completions of many requests at once, each a token further with each step.

    It reads the model's weights as they are now: after training has changed them, make a new one.
    One thread uses it.

    slots: how many texts grow at once.
    """

    def __init__(self, model: GPT, vocabulary: Vocabulary, *, slots: int = 16) -> None:
        self.model = sampling_model(model)
        self.vocabulary = vocabulary
        self.slots = slots
        self.context = model.cfg.max_seq_length
        self.device = self.model.head.weight.device
        # one row more, for `rank`
        weight = next(self.model.norm.parameters()).detach()
        self._cache = KeyValueCache(model.cfg, slots + 1, weight)
        self._decode = self._fastest_step()
        self._kept = KeptPrefixes(KEPT_BYTES // self._cache.bytes_per_token)
        self._active: list[Text] = []  # the text of each row
        self._waiting: list[Text] = []
        self._known_lines: tuple[frozenset[str], frozenset[tuple[int, ...]]] = (
            frozenset(),
            frozenset(),
        )
        # what ends a repetition: the lines of two speeches may be equal
        self._line_feeds = vocabulary.line_feeds

    def _fastest_step(self) -> Step:
        """Return the step that this device runs best without a compiler."""
        if self.device.type != "cuda":
            return decode_step(self.model)
        try:
            with torch.no_grad():
                return graphed_step(self.model, self._cache, self.slots)
        except RuntimeError as error:  # out of memory among them: a text can do without
            logger.warning("sampling goes on without a CUDA graph: %s", str(error).split("\n")[0])
            return decode_step(self.model)

    def compile(self) -> None:
        """Compile the step; it computes the same, and takes 20 to 40 s the first time on a machine.

        Another thread may call it while this one goes on stepping: the next step after it is fast.
        Raises: CompileFailed; the steps stay as they were.
        """
        self._decode = compiled_step(self.model, self.slots)

    @property
    def busy(self) -> bool:
        """Return whether a step would do something."""
        return bool(self._active or self._waiting)

    @property
    def active(self) -> int:
        """Return how many completions grow at the moment."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Return how many completions wait for a free slot."""
        return len(self._waiting)

    def add(self, request: Request) -> Completion:
        """Put a request in line; its completion begins to grow when a slot is free."""
        completion = Completion(request)
        ids = list(request.prompt) or [self.vocabulary.end_of_text_id]
        if request.prompt_logprobs:
            completion.prompt_tokens += [Token(token) for token in request.prompt[:1]]
        drawer = Drawer(
            request.controls,
            ids,
            request.choice,
            breakers=self._line_feeds,
            speaker_lines=self._encoded_lines(request.controls.stop_before_speaker),
        )
        self._waiting.append(
            Text(completion, ids, drawer, self.vocabulary.decoder(), Shown(request.controls))
        )
        return completion

    def _encoded_lines(self, lines: frozenset[str] | None) -> frozenset[tuple[int, ...]]:
        """Return the ids of the speakers' lines, which may be repeated; the last set is kept."""
        if not lines:
            return frozenset()
        if lines != self._known_lines[0]:
            whole = (f"{line}\n" for line in lines)
            encodable = (line for line in whole if self.vocabulary.can_write(line))
            encoded = frozenset(tuple(self.vocabulary.encode(line)) for line in encodable)
            self._known_lines = (lines, encoded)
        return self._known_lines[1]

    def cancel(self, completion: Completion) -> None:
        """End a completion; its slot is free at once. One that has ended stays as it is."""
        if completion.finish_reason is None:
            completion.finish_reason = "cancelled"
        self._waiting = [text for text in self._waiting if text.completion is not completion]
        for row, text in enumerate(self._active):
            if text.completion is completion:
                self._free(row)
                return

    def step(self) -> list[Completion]:
        """Let each active completion grow by one token; return those that changed.

        Of prompts that are not read yet, a part is read.
        """
        with torch.no_grad():
            while self._waiting and len(self._active) < self.slots:
                self._active.append(self._waiting.pop(0))
            self._forget()
            changed = self._decode_texts() + self._read_texts()
            ended = [i for i, text in enumerate(self._active) if text.completion.finish_reason]
            for row in reversed(ended):
                self._free(row)
        return [text.completion for text in changed]

    def stream(self, request: Request) -> Iterator[Completion]:
        """Yield the completion of one request each time that it has grown, until it has ended.

        Whoever closes the iterator earlier cancels the completion.
        """
        completion = self.add(request)
        try:
            while completion.finish_reason is None:
                if any(changed is completion for changed in self.step()):
                    yield completion
        finally:
            self.cancel(completion)

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Return the completions of all requests, when all have ended."""
        completions = [self.add(request) for request in requests]
        while any(completion.finish_reason is None for completion in completions):
            self.step()
        return completions

    def rank(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
        """Return the log-probability (nats) of each continuation of a prompt, which may be empty.

        Raises: ValueError for a continuation that is empty or longer than half of the context.
        """
        longest = max(map(len, continuations), default=0)
        if not all(map(len, continuations)) or longest > self.context // 2:
            raise ValueError(
                "each continuation needs a token and must fit into half of the context"
            )
        ids = list(prompt) or [self.vocabulary.end_of_text_id]
        ids = ids[window_start(len(ids) + longest, self.context) :]
        row = self.slots
        with torch.no_grad():
            past = self._reuse(row, ids)
            hidden = self._read(row, ids[past:], past)  # (T, C)
            self._keep(row, as_ids(ids))
            first = self._logprobs(hidden[-1:])[0]  # (V,)
            scores = [float(first[continuation[0]]) for continuation in continuations]
            further = self._logprobs_side_by_side(row, len(ids), continuations)
        return [score + more for score, more in zip(scores, further, strict=True)]

    def _logprobs_side_by_side(
        self, row: int, past: int, continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """Return the log-probability of each continuation's tokens but the first.

        All go through the model at once: each token sees the row and its own continuation.
        """
        lengths = torch.tensor([len(continuation) - 1 for continuation in continuations])
        read = [token for continuation in continuations for token in continuation[:-1]]
        scores = [0.0 for _ in continuations]
        if not read:
            return scores
        number = torch.arange(len(continuations)).repeat_interleave(lengths)  # (T,)
        positions = past + torch.cat([torch.arange(int(n)) for n in lengths])  # (T,)
        visible = (number[:, None] == number) & (positions[:, None] >= positions)  # (T, T)
        cache = Branching(
            self._cache, row, past, positions[None].to(self.device), visible.to(self.device)
        )
        after = self._logprobs(self._hidden(read, cache))  # (T, V)
        expected = [token for continuation in continuations for token in continuation[1:]]
        for row_of_after, i, token in zip(after, number.tolist(), expected, strict=True):
            scores[i] += float(row_of_after[token])
        return scores

    def _hidden(self, ids: Sequence[int], cache: Cache) -> Tensor:
        """Return what the head reads after each of the new tokens of one text, (T, C)."""
        return self.model.hidden(torch.tensor([list(ids)], device=self.device), cache)[0]

    def _read(self, row: int, ids: Sequence[int], past: int) -> Tensor:
        """Read new tokens into a row after `past` others; return what the head reads, (T, C)."""
        positions = torch.arange(past, past + len(ids), device=self.device)[None]  # (1, T)
        return self._hidden(ids, Reading(self._cache, row, past, positions))

    def _logits(self, hidden: Tensor) -> NDArray[np.float32]:
        """Return logits (T, V) from what the head reads, (T, C)."""
        logits: NDArray[np.float32] = self.model.head(hidden).float().cpu().numpy()
        return logits

    def _logprobs(self, hidden: Tensor) -> NDArray[np.float64]:
        """Return log-probabilities (T, V) from what the head reads, (T, C)."""
        return logprobs(self._logits(hidden))

    def _reuse(self, row: int, ids: Sequence[int]) -> int:
        """Fill a row with what is there already of a text; return how many tokens that are.

        The last token is always left to be read, since what follows it is asked for.
        """
        text = as_ids(ids)[:-1]
        length, kept = self._kept.longest(text)
        best_row = None
        for other, active in enumerate(self._active):
            if other != row:
                common = common_length(active.in_row(), text)
                if common > length:
                    length = common
                    best_row = other
        if best_row is not None:
            self._cache.copy_row(best_row, row, length)
        elif kept is not None:
            self._cache.restore(row, kept.saved, length)
            self._kept.use(kept)
        return length

    def _keep(self, row: int, ids: NDArray[np.int64]) -> None:
        """Keep what a row holds, for prompts that begin in the same way."""
        if len(ids) and not self._kept.has(ids):
            self._kept.keep(ids, self._cache.saved(row, len(ids)))

    def _free(self, row: int) -> None:
        """Take a text out of its row; the last text in use moves there."""
        self._keep(row, self._active[row].in_row())
        text = self._active.pop()
        if row < len(self._active):
            self._active[row] = text
            self._cache.copy_row(len(self._active), row, text.length)

    def _forget(self) -> None:
        """Where a context is full, forget its older half; what is left is read again."""
        for text in self._active:
            start = window_start(len(text.ids), self.context)
            if start > text.start and not text.scores_prompt:
                text.completion.forgot = True
                text.read_again(start)

    def _decode_texts(self) -> list[Text]:
        """Give each text whose row lacks only its last token the next one; return those texts."""
        rows = [row for row, text in enumerate(self._active) if not text.reading]
        if not rows:
            return []
        # a text in between that is still being read gets a token that its next part overwrites
        batch = self._active[: rows[-1] + 1]
        ids = torch.tensor([text.ids[-1] for text in batch], device=self.device)  # (B,)
        positions = torch.tensor([text.length for text in batch], device=self.device)  # (B,)
        longest = 1 + max(text.length for text in batch)
        seen = torch.arange(tokens_looked_at(longest, self.context), device=self.device)
        logits = self._decode(ids, positions, self._cache.k, self._cache.v, seen)  # (B, V)
        texts = [self._active[row] for row in rows]
        for text in texts:
            text.length += 1
        self._extend(texts, logits.cpu().numpy()[rows])
        return texts

    def _read_texts(self) -> list[Text]:
        """Read a part of the texts that are not read; return those that got their next token."""
        budget = READ_AT_ONCE
        extended = []
        for row, text in enumerate(self._active):
            if not text.reading or text.completion.finish_reason or not budget:
                continue
            if not text.length and not text.scores_prompt:
                text.length = self._reuse(row, text.ids[text.start :])
            begin = text.start + text.length
            end = min(begin + budget, text.start + self.context, len(text.ids))
            budget -= end - begin
            hidden = self._read(row, text.ids[begin:end], text.length)  # (T, C)
            text.length += end - begin
            if text.scores_prompt:
                self._score_prompt(text, begin, self._logits(hidden))
            if end == len(text.ids):
                text.reading = False
                self._extend([text], self._logits(hidden[-1:]))
                extended.append(text)
            elif text.length == self.context:  # the rest of a prompt that is scored
                text.completion.forgot = True
                text.read_again(window_start(end + 1, self.context))
        return extended

    def _score_prompt(self, text: Text, begin: int, logits: NDArray[np.float32]) -> None:
        """Note the log-probabilities of the prompt's tokens that follow those just read.

        begin: index of the first token that was read; logits: (T, V), those after each of them.
        """
        request = text.completion.request
        found = logprobs(logits)
        for place in range(len(found)):
            index = begin + place + 1
            if text.scored <= index < len(text.ids):
                token = text.ids[index]
                text.scored += 1
                best = top(found[place, : len(self.vocabulary)], request.top_logprobs or 0)
                text.completion.prompt_tokens.append(Token(token, float(found[place, token]), best))

    def _extend(self, texts: Sequence[Text], logits: NDArray[np.float32]) -> None:
        """Give each text its next token, drawn from its logits, (B, V)."""
        texts, logits = self._without_finished(texts, logits)
        # a model may have more rows than tokens, which are never drawn
        n_tokens = len(self.vocabulary)
        drawn = draw(logits[:, :n_tokens], [text.drawer for text in texts])  # (B,)
        asked = [text.completion.request.top_logprobs for text in texts]
        wanted = [i for i, count in enumerate(asked) if count is not None]
        found = dict(zip(wanted, logprobs(logits[wanted]), strict=True)) if wanted else {}
        for i, (text, token) in enumerate(zip(texts, drawn.tolist(), strict=True)):
            if i in found:
                best = top(found[i][:n_tokens], asked[i] or 0)
                self._append(text, Token(token, float(found[i][token]), best))
            else:
                self._append(text, Token(token))

    @staticmethod
    def _without_finished(
        texts: Sequence[Text], logits: NDArray[np.float32]
    ) -> tuple[list[Text], NDArray[np.float32]]:
        """Return the texts that may have more tokens, with their logits; the others end here."""
        growing = []
        for i, text in enumerate(texts):
            if len(text.completion.tokens) < text.completion.request.controls.max_new_tokens:
                growing.append(i)
            else:
                text.completion.finish_reason = "length"
        return [texts[i] for i in growing], logits[growing]

    def _append(self, text: Text, token: Token) -> None:
        """Add a token to a text, and end the text where it ends."""
        completion = text.completion
        shown = text.shown
        if token.id == self.vocabulary.end_of_text_id:
            completion.text += self._rest_of(text)
            completion.finish_reason = "stop"
            completion.stopped_by = END_OF_TEXT
            return
        text.ids.append(token.id)
        completion.tokens.append(token)
        completion.text += shown.feed(text.decoder.feed(token.id))
        if shown.ended:
            completion.finish_reason = "stop"
            completion.stopped_by = shown.stopped_by
        elif len(completion.tokens) >= completion.request.controls.max_new_tokens:
            completion.text += self._rest_of(text)
            completion.finish_reason = "length"

    @staticmethod
    def _rest_of(text: Text) -> str:
        """Return what was held back of a text that ends here: half a character, half a stop."""
        return text.shown.feed(text.decoder.end()) + text.shown.end()
