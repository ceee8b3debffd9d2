"""How well does a model predict texts that it has not seen? Each file, and each speaker.

Losses are those of a run's last evaluation: adjacent windows of T tokens, in which each token but
the first of a text is a target once.

Letters: N tokens of a text, T `max_seq_length`, V vocabulary size, B windows at once.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from chatgot.data.encoding import detect_encoding
from chatgot.data.learned_lines import SpeechPlaces, speech_places, token_places
from chatgot.data.prompts import LEAST_SPEECHES
from chatgot.data.speaker_lines import count_speeches, lines_of
from chatgot.data.text_file import check_text_file, text_chunks
from chatgot.data.vocabulary import Ids, Vocabulary
from chatgot.errors import ConfigError
from chatgot.logs.waiting import Advance, waiting
from chatgot.model.gpt import GPT, evaluating
from chatgot.sampling.loading import LoadedModel

MOST_BYTES = 200_000_000  # of a text: its losses are kept in memory
LOGITS = 1 << 24  # B * T * V at most
Losses = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """How well some tokens are predicted.

    tokens: targets. loss: mean nats per token. utf8_bytes: of the targets' text.
    """

    tokens: int
    loss: float
    utf8_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """The loss per byte of text, in bits: comparable between characters and subwords."""
        return self.loss * self.tokens / max(1, self.utf8_bytes) / math.log(2)


@dataclass(frozen=True)
class TextScore:
    """One text, and who speaks in it, most tokens first.

    unknown: how many characters the vocabulary does not have, and which; they were replaced.
    text: as the model reads it, with the replacements.
    """

    name: str
    whole: Score
    speakers: dict[str, Score]
    unknown: int
    unknown_characters: str
    text: str = field(repr=False)


def score_file(path: Path, loaded: LoadedModel, encoding: str | None = None) -> TextScore:
    """Read a text and score it.

    Raises: ConfigError for a text that cannot be read, is too large or has fewer than two tokens.
    """
    size = check_text_file(path, advice="give")
    if size > MOST_BYTES:
        raise ConfigError(
            f"{path}: {size:,} bytes, at most {MOST_BYTES:,} can be evaluated at once; give a part"
        )
    text = "".join(text_chunks(path, encoding or detect_encoding(path)))
    return score_text(str(path), text, loaded)


def score_text(name: str, text: str, loaded: LoadedModel) -> TextScore:
    """Score a text. Raises: ConfigError for one with fewer than two tokens."""
    vocabulary = loaded.vocabulary
    known, unknown = vocabulary.replace_unknown(text)
    counts = Counter(text) if unknown else Counter()  # once, however many are unknown
    unknown_count = sum(counts[character] for character in unknown)
    ids = np.array(vocabulary.encode(known), dtype=np.uint32)
    if len(ids) < 2:
        raise ConfigError(f"{name}: {len(ids)} tokens, at least 2 are needed to evaluate it")
    T = loaded.config.model.max_seq_length
    with waiting(f"evaluating {Path(name).name}", len(ids)) as advance:
        losses = token_losses(loaded.model, ids, T, advance)
    sizes = np.array([len(vocabulary.bytes_of(token)) for token in range(len(vocabulary))])
    scored = _Scored(losses, sizes[ids])
    speakers = _by_speaker(ids, vocabulary, scored)
    return TextScore(name, scored.of(1, len(ids)), speakers, unknown_count, unknown, known)


def token_losses(model: GPT, ids: Ids, T: int, advance: Advance) -> Losses:
    """Return the loss of each token but the first in nats, (N - 1,).

    The model is in evaluation mode and left as it is.
    """
    device = next(model.parameters()).device
    V = model.token_embedding.weight.size(0)
    B = max(1, LOGITS // (T * V))
    text = torch.from_numpy(ids.astype(np.int64))
    losses = np.empty(len(ids) - 1)
    whole = (len(ids) - 1) // T
    with evaluating(model):
        for first in range(0, whole, B):
            count = min(B, whole - first)
            begin = first * T
            x = text[begin : begin + count * T].view(count, T)
            y = text[begin + 1 : begin + count * T + 1].view(count, T)
            losses[begin : begin + count * T] = _losses(model, x.to(device), y.to(device))
            advance(count * T)
        if whole * T < len(ids) - 1:
            x = text[whole * T : -1].unsqueeze(0)
            y = text[whole * T + 1 :].unsqueeze(0)
            losses[whole * T :] = _losses(model, x.to(device), y.to(device))
    return losses


def _losses(model: GPT, x: torch.Tensor, y: torch.Tensor) -> Losses:
    """Return the loss of each target, (B * T,)."""
    logits = model(x)[0].float()  # (B, T, V)
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")  # (B * T,)
    return losses.double().cpu().numpy()


class _Scored:
    """Sums of losses and bytes over any stretch of a text's tokens."""

    def __init__(self, losses: Losses, sizes: NDArray[np.int64]) -> None:
        self._losses = np.concatenate([[0.0, 0.0], np.cumsum(losses)])  # before each token
        self._bytes = np.concatenate([[0], np.cumsum(sizes)])

    def of(self, begin: int, end: int) -> Score:
        """Score the tokens [begin, end) of a text; its first token is no target."""
        return self.of_spans(np.array([begin]), np.array([end]))

    def of_spans(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> Score:
        """Score the tokens of several stretches."""
        begins = np.maximum(1, begins)
        ends = np.maximum(begins, ends)
        tokens = int((ends - begins).sum())
        total = float((self._losses[ends] - self._losses[begins]).sum())
        utf8_bytes = int((self._bytes[ends] - self._bytes[begins]).sum())
        return Score(tokens, total / max(1, tokens), utf8_bytes)


def _by_speaker(ids: Ids, vocabulary: Vocabulary, scored: _Scored) -> dict[str, Score]:
    """Return the score of each speaker's lines, most tokens first."""
    speeches = count_speeches(lines_of(ids, vocabulary, _quiet))
    known = {name for name, count in speeches.items() if count >= LEAST_SPEECHES}
    places = SpeechPlaces()
    names = []
    for name, begin, end in speech_places(lines_of(ids, vocabulary, _quiet), known):
        places.add(begin, end)
        names.append(name)
    begins, ends = token_places(places, ids, vocabulary)
    speeches_of: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        speeches_of.setdefault(name, []).append(number)
    scores = {
        name: scored.of_spans(begins[numbers], ends[numbers])
        for name, numbers in speeches_of.items()
        if name in known
    }
    return dict(sorted(scores.items(), key=lambda item: (-item[1].tokens, item[0])))


def _quiet(_: float) -> None:
    """Show no progress."""


def together(scores: list[Score]) -> Score:
    """Return the score of several texts as if they were one."""
    tokens = sum(score.tokens for score in scores)
    total = sum(score.loss * score.tokens for score in scores)
    return Score(tokens, total / max(1, tokens), sum(score.utf8_bytes for score in scores))
