"""The held-out text of each source, so that each has a loss of its own."""

from dataclasses import dataclass

from chatgot.config import DataConfig
from chatgot.data.learned_lines import LearnedTokens
from chatgot.data.mixture import own_parts, training_sources
from chatgot.data.token_cache import Tokens
from chatgot.data.windows import ValidationWindows

MOST_SOURCES = 16  # of more sources without `data.mixture`, none is measured alone


@dataclass(frozen=True)
class HeldOutSource:
    """The held-out windows of one source.

    weight: what its loss counts for in `val_loss`. Those of all sources add up to 1. It is the
    share in training where there is one, else the share of the held-out text.
    """

    name: str
    weight: float
    windows: ValidationWindows


def held_out_sources(
    tokens: Tokens, data: DataConfig, whole: ValidationWindows, n_train: int
) -> list[HeldOutSource]:
    """Return the sources that have held-out text; empty: the text is measured as one whole.

    whole: the windows over the whole held-out part, whose settings these take over.
    """
    parts = tokens.parts
    shares = _shares(tokens, data)
    if len(parts) < 2 or not shares:
        return []
    sources = []
    for part in parts:
        begin, end = (place - n_train for place in part.held_out)
        ids = whole.ids[begin:end]
        evaluated = None if whole.learned is None else whole.learned.part(begin, end)
        if not _has_targets(len(ids), evaluated):
            continue
        windows = ValidationWindows(ids, whole.T, whole.vocab_size, whole.device, evaluated)
        sources.append(HeldOutSource(part.name, shares[part.name], windows))
    total = sum(source.weight for source in sources)
    if total <= 0:
        return []
    return [HeldOutSource(s.name, s.weight / total, s.windows) for s in sources]


def _has_targets(n_tokens: int, evaluated: LearnedTokens | None) -> bool:
    if n_tokens < 2:
        return False
    return evaluated is None or evaluated.targets(n_tokens) > 0


def _shares(tokens: Tokens, data: DataConfig) -> dict[str, float]:
    """Return what each source counts for; empty: none is measured alone."""
    own = own_parts(tokens, data)
    lengths = {part.name: part.held_out[1] - part.held_out[0] for part in own}
    whole = max(1, sum(lengths.values()))
    shares = {name: length / whole for name, length in lengths.items()}
    if data.mixture is not None:
        shares = {source.name: source.share for source in training_sources(tokens, data)}
    elif len(own) > MOST_SOURCES:
        return {}
    if data.replay is None:
        return shares
    if data.mixture is None:
        shares = {name: share * (1 - data.replay) for name, share in shares.items()}
    return shares | {tokens.parts[-1].name: data.replay}
