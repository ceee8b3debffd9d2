"""How do prompts become continuations on stdout?"""

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chatgot.chat.limits import LARGEST_SEED
from chatgot.data.vocabulary import Vocabulary
from chatgot.errors import ConfigError
from chatgot.logs.logging_setup import UNSAFE
from chatgot.sampling.controls import Controls
from chatgot.sampling.engine import Completion, Engine, Request

JSON_LINES_SUFFIX = ".jsonl"
ASKED_AHEAD = 64  # completions; more than an engine has slots


@dataclass(frozen=True)
class Continuation:
    """One text that is asked for: a prompt, as the model reads it, and its completion."""

    prompt: str
    completion: Completion


def ask_for(
    engine: Engine, vocabulary: Vocabulary, prompts: Sequence[str], n: int, controls: Controls
) -> Iterator[Continuation]:
    """Yield n completions of each prompt, which have been asked for and begin to grow.

    Some more have been asked for than were taken, so that the engine always has work; a million
    at once would fill the memory. The seed of each next completion of a prompt is larger by 1.
    All characters of the prompts must be in the vocabulary.
    """
    asked: deque[Continuation] = deque()
    for prompt in prompts:
        ids = tuple(vocabulary.encode(prompt))
        for number in range(n):
            drawn = replace(controls, seed=(controls.seed + number) % LARGEST_SEED)
            completion = engine.add(Request(ids, drawn, top_logprobs=0))
            asked.append(Continuation(prompt, completion))
            if len(asked) > ASKED_AHEAD:
                yield asked.popleft()
    while asked:
        yield asked.popleft()


def written_as_text(engine: Engine, continuations: Iterable[Continuation]) -> Iterator[str]:
    """Yield each prompt and its text, piece by piece, in order; a blank line is between two."""
    for number, continuation in enumerate(continuations):
        completion = continuation.completion
        yield "\n" * (number > 0) + continuation.prompt
        shown = 0
        while True:
            yield completion.text[shown:]
            shown = len(completion.text)
            if completion.finish_reason is not None:
                break
            engine.step()
        if not (continuation.prompt + completion.text).endswith("\n"):
            yield "\n"


def written_as_json(engine: Engine, continuations: Iterable[Continuation]) -> Iterator[str]:
    """Yield one JSON object a line for each text, in order."""
    for continuation in continuations:
        while continuation.completion.finish_reason is None:
            engine.step()
        yield json_line(continuation)


def json_line(continuation: Continuation) -> str:
    """Return the line of one completion; no control character is in it but its line feed.

    logprob: the sum over its tokens, in nats, before any of the controls. tokens: their number.
    """
    completion = continuation.completion
    row = {
        "prompt": continuation.prompt,
        "text": completion.text,
        "logprob": math.fsum(token.logprob or 0.0 for token in completion.tokens),
        "tokens": len(completion.tokens),
        "seed": completion.request.controls.seed,
        "finish_reason": completion.finish_reason,
    }
    line = json.dumps(row, ensure_ascii=False)
    return UNSAFE.sub(lambda match: json.dumps(match[0])[1:-1], line) + "\n"


def read_prompts(source: str, content: bytes) -> list[str]:
    """Return the prompts of a file: one a line, and blank lines are skipped.

    In a file whose name ends in .jsonl, each line is a JSON string or {"prompt": ...}.
    Raises: ConfigError.
    """
    text = decode(source, content)
    rows = [row for row in text.replace("\r\n", "\n").split("\n") if row.strip()]
    if Path(source).suffix.lower() == JSON_LINES_SUFFIX:
        rows = [_prompt_in(source, row) for row in rows]
    if not rows:
        raise ConfigError(f"{source}: no prompt in it, expected one a line")
    return rows


def _prompt_in(source: str, row: str) -> str:
    try:
        content = json.loads(row)
        prompt = content if isinstance(content, str) else content["prompt"]
        if isinstance(prompt, str):
            return prompt
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise ConfigError(
        f'{source}: found {row[:60]!r}, expected a JSON string or {{"prompt": "..."}} in each line'
    )


def decode(source: str, content: bytes) -> str:
    """Return a text in UTF-8. Raises: ConfigError."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not a text in UTF-8: save it in UTF-8") from error
