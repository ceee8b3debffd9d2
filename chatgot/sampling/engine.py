"""From prompts to texts, many at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from chatgot.data.vocabulary import END_OF_TEXT_ID, Vocabulary
from chatgot.model.gpt import GPT, evaluating
from chatgot.sampling.controls import Controls


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


class Engine:
    """Writes the completions of many requests at once, each a token further with each step."""

    def __init__(self, model: GPT, vocabulary: Vocabulary, *, slots: int = 16) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.slots = slots
        self._active: list[Completion] = []
        self._waiting: list[Completion] = []

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
        self._waiting.append(completion)
        return completion

    def cancel(self, completion: Completion) -> None:
        """End a completion; its slot is free at once. One that has ended stays as it is."""
        if completion.finish_reason is None:
            completion.finish_reason = "cancelled"
        self._active = [c for c in self._active if c is not completion]
        self._waiting = [c for c in self._waiting if c is not completion]

    def step(self) -> list[Completion]:
        """Let each active completion grow by one token; return those that changed."""
        while self._waiting and len(self._active) < self.slots:
            self._active.append(self._waiting.pop(0))
        changed = list(self._active)
        for completion in changed:
            self._grow(completion)
        self._active = [c for c in self._active if c.finish_reason is None]
        return changed

    def stream(self, request: Request) -> Iterator[Completion]:
        """Yield the completion of one request each time that it has grown, until it has ended.

        Whoever closes the iterator earlier cancels the completion.
        """
        completion = self.add(request)
        try:
            while completion.finish_reason is None:
                if completion in self.step():
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
        """Return the log-probability (nats) of each continuation of a prompt, which may be empty."""
        scores = []
        for continuation in continuations:
            ids = [*prompt, *continuation] if prompt else [END_OF_TEXT_ID, *continuation]
            ids = ids[-self.model.cfg.max_seq_length :]
            logprobs = self._logits(ids).log_softmax(-1)
            n = len(continuation)
            scores.append(
                sum(float(logprobs[i - 1, ids[i]]) for i in range(len(ids) - n, len(ids)))
            )
        return scores

    def _logits(self, ids: Sequence[int]) -> torch.Tensor:
        with evaluating(self.model):
            logits, _ = self.model(torch.tensor([list(ids)]))
        return logits[0].float()

    def _grow(self, completion: Completion) -> None:
        request = completion.request
        controls = request.controls
        ids = [*(request.prompt or (END_OF_TEXT_ID,)), *(t.id for t in completion.tokens)]
        logits = self._logits(ids[-self.model.cfg.max_seq_length :])[-1]
        generator = torch.Generator().manual_seed(
            controls.seed + 1000 * len(completion.tokens) + 77 * request.choice
        )
        if controls.temperature == 0:
            token = int(logits.argmax())
        else:
            weights = (logits / controls.temperature).softmax(-1)
            token = int(torch.multinomial(weights, 1, generator=generator))
        if token == END_OF_TEXT_ID:
            completion.finish_reason = "stop"
            completion.stopped_by = "<|endoftext|>"
            return
        logprobs = logits.log_softmax(-1)
        top = ()
        if request.top_logprobs:
            best = logprobs.topk(request.top_logprobs)
            top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        asked = request.top_logprobs is not None
        completion.tokens.append(Token(token, float(logprobs[token]) if asked else None, top))
        text = self.vocabulary.decode([t.id for t in completion.tokens])
        for stop in controls.stop:
            if stop in text:
                completion.text = text[: text.index(stop)]
                completion.finish_reason = "stop"
                completion.stopped_by = stop
                return
        completion.text = text
        if len(completion.tokens) >= controls.max_new_tokens:
            completion.finish_reason = "length"
