"""How completions look in OpenAI's answers, whole or in pieces."""

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from chatgot.data.vocabulary import END_OF_TEXT, Vocabulary
from chatgot.sampling.engine import Completion, Token
from chatgot.serving.batching import Progress
from chatgot.serving.models import Served

IMPOSSIBLE = -9999.0  # what OpenAI writes for the logarithm of 0


@dataclass
class Piece:
    """What is new of one choice: its text and the tokens that make it up.

    offsets: where the text of each token begins in that of the choice.
    """

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.tokens or self.finish_reason)


class ChoiceReader:
    """Takes from a growing completion what was not taken yet.

    echo: the text of the prompt, which goes first; None: it is not asked for.
    with_end: the end-of-text token is shown among the tokens where it ended the text.
    """

    def __init__(self, served: Served, *, echo: str | None = None, with_end: bool = False) -> None:
        self._vocabulary = served.loaded.vocabulary
        self._decoder = self._vocabulary.decoder()
        self._with_end = with_end
        self._echo = echo
        self._text_taken = 0
        self._tokens_taken = 0
        # of each token, where its text begins and ends in what the model wrote
        self._places: list[tuple[int, int]] = []
        self._decoded = 0  # characters
        self._written_at = len(echo or "")  # where in the choice that begins
        self._ended = False

    def take(self, progress: Progress | None, *, cut: str | None = None) -> Piece:
        """Return what is new.

        cut: the finish reason of a text that has to end now.
        """
        if progress is None or self._ended:
            return self._end(Piece(), cut)
        completion = progress.completion
        prompt = completion.request.prompt
        if completion.request.prompt_logprobs and progress.n_prompt_tokens < len(prompt):
            return self._end(Piece(), cut)
        piece = Piece(finish_reason=progress.finish_reason)
        if self._echo is not None:
            piece.text = self._echo
            piece.tokens += completion.prompt_tokens[: len(prompt)]
            piece.offsets += _offsets(self._vocabulary, piece.tokens)
            self._echo = None
        piece.text += progress.text[self._text_taken :]
        self._text_taken = len(progress.text)
        self._add_tokens(piece, progress)
        if piece.finish_reason and self._with_end and completion.stopped_by == END_OF_TEXT:
            piece.tokens.append(Token(self._vocabulary.end_of_text_id))
            piece.offsets.append(self._written_at + self._text_taken)
        return self._end(piece, cut)

    def _add_tokens(self, piece: Piece, progress: Progress) -> None:
        """Add the tokens of the text that is shown; what is held back or cut off has none."""
        completion = progress.completion
        if completion.request.top_logprobs is None:
            return
        while self._tokens_taken < progress.n_tokens:
            token = completion.tokens[self._tokens_taken]
            if len(self._places) == self._tokens_taken:
                self._places.append(self._place_of(token))
            start, end = self._places[self._tokens_taken]
            # at the end, a token of which only a part is shown belongs to the text
            is_shown = end <= len(progress.text)
            is_cut = bool(progress.finish_reason) and start < len(progress.text)
            if not (is_shown or is_cut):
                break
            piece.tokens.append(token)
            piece.offsets.append(self._written_at + start)
            self._tokens_taken += 1

    def _place_of(self, token: Token) -> tuple[int, int]:
        """Return where the text of the next token begins and ends.

        A token with a part of a character ends where the whole character will end.
        """
        start = self._decoded
        self._decoded += len(self._decoder.feed(token.id))
        return start, self._decoded + self._decoder.holds

    def _end(self, piece: Piece, cut: str | None) -> Piece:
        if self._ended:
            return piece
        piece.finish_reason = piece.finish_reason or cut
        self._ended = piece.finish_reason is not None
        return piece


def _offsets(vocabulary: Vocabulary, tokens: Sequence[Token]) -> list[int]:
    """Return where the text of each token begins in that of all of them."""
    offsets = []
    offset = 0
    decoder = vocabulary.decoder()
    for token in tokens:
        offsets.append(offset)
        offset += len(decoder.feed(token.id))
    return offsets


def _number(logprob: float | None) -> float | None:
    if logprob is None:
        return None
    return logprob if math.isfinite(logprob) else IMPOSSIBLE


def legacy_logprobs(served: Served, piece: Piece) -> dict[str, object]:
    """Return the log-probabilities of a piece as /v1/completions has them."""
    return {
        "tokens": [served.pieces[token.id] for token in piece.tokens],
        "token_logprobs": [_number(token.logprob) for token in piece.tokens],
        "top_logprobs": [
            {served.pieces[i]: _number(logprob) for i, logprob in token.top}
            if token.logprob is not None
            else None
            for token in piece.tokens
        ],
        "text_offset": piece.offsets,
    }


def chat_logprobs(served: Served, piece: Piece) -> dict[str, object]:
    """Return the log-probabilities of a piece as /v1/chat/completions has them."""
    content = [
        {
            **_with_bytes(served, token.id, token.logprob),
            "top_logprobs": [_with_bytes(served, i, value) for i, value in token.top],
        }
        for token in piece.tokens
    ]
    return {"content": content, "refusal": None}


def _with_bytes(served: Served, token: int, logprob: float | None) -> dict[str, object]:
    return {
        "token": served.pieces[token],
        "logprob": _number(logprob),
        "bytes": list(served.bytes_of(token)),
    }


def usage(prompt_tokens: int, completions: Sequence[Completion]) -> dict[str, int]:
    """Return how many tokens a request took."""
    written = sum(len(completion.tokens) for completion in completions)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }


class Form:
    """The frame that all answers and events of one request share."""

    def __init__(self, prefix: str, kind: str, served: Served, extra: dict[str, object]) -> None:
        self.kind = kind
        self._frame: dict[str, object] = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": served.model_id,
            "system_fingerprint": served.fingerprint,
        }
        self._extra = extra

    def whole(self, choices: list[dict[str, object]], used: dict[str, int]) -> dict[str, object]:
        """Return a whole answer."""
        answer = {**self._frame, "object": self.kind, "choices": choices, "usage": used}
        return answer | ({"chatgot": self._extra} if self._extra else {})

    def event(self, choices: list[dict[str, object]]) -> dict[str, object]:
        """Return an event of a stream."""
        kind = self.kind if self.kind == "text_completion" else f"{self.kind}.chunk"
        return {**self._frame, "object": kind, "choices": choices}
