"""What a request says about how its text is drawn, and where the text ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from chatgot.data.vocabulary import Kind

# Tokens that may repeat without a penalty by DRY, where nobody says how many
DRY_LENGTH: Mapping[Kind, int] = {"characters": 12, "subwords": 2}


@dataclass(frozen=True)
class Controls:
    """How one completion is drawn, in the order in which the controls are applied.

    seed: the noise of a completion depends on it, on the completion's number and on the index of
    the token, and on nothing else.
    """

    logit_bias: Mapping[int, float] = field(default_factory=dict)  # by id, added to its logit
    presence_penalty: float = 0.0  # as OpenAI defines it: off each id that was drawn before
    frequency_penalty: float = 0.0  # times how often it was drawn
    dry_multiplier: float = 0.0  # 0: DRY is off
    dry_base: float = 1.75
    dry_allowed_length: int = DRY_LENGTH["characters"]  # tokens that may repeat without a penalty
    temperature: float = 1.0  # 0: always the likeliest token
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int = 0
    max_new_tokens: int = 200
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    # The text ends before a line that names a speaker. None: it does not. A set: the known names;
    # after a blank line any line that looks like a speaker's ends it, too
    stop_before_speaker: frozenset[str] | None = None
