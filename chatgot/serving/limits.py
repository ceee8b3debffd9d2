"""How much one client may ask for, and all of them together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What is more than this is refused with 400, 413 or 429.

    completions: texts that one request asks for, its prompts times `n`.
    request_tokens: tokens that one request may have written, over all of its texts.
    seconds: an answer that takes longer ends with what it has by then.
    """

    concurrent: int = 64
    body_bytes: int = 1_000_000
    prompt_tokens: int = 32_768
    max_tokens: int = 16_384
    completions: int = 128
    request_tokens: int = 131_072
    seconds: float = 300.0
