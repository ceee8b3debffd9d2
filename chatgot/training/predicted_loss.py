"""Which held-out loss will a run reach? A rule on numbers alone, with an error bar.

    bits per byte = difficulty x e^(weight x feature + weight x feature + ...)

The features are what is known before the first step. Their weights, the bar and the
range of what was measured are in loss_constants.py; `python scripts/benchmark.py prediction` fits
them. How well that does is in docs/experiments.md, "How a loss is predicted".
"""

import math
from dataclasses import dataclass

from chatgot.training.loss_constants import BAR, MEASURED, TOKENIZERS, WEIGHTS

# More passes over a text are worth less and less: a factor of e less in so many.
# Source: Muennighoff et al. 2023, arXiv:2305.16264, section 5 (R_D* of the fit).
WORTH_OF_PASSES = 15.4
# The loss falls with a power of what was seen, towards what no more text would lower. Hoffmann et
# al. 2022, arXiv:2203.15556, section 3.3, found 0.28; of 0.2, 0.33, 0.4 and 0.5 this is the best.
POWER = 0.2
MILLION = 1e6  # characters: only a scale
# What a longer text teaches beyond so many characters is in its difficulty already.
TEXT_THAT_COUNTS = 1_000_000
HARDLY_BEYOND = 0.25  # doublings beyond what was measured: less is not worth a word


@dataclass(frozen=True)
class Planned:
    """What is known of a run before its first step.

    difficulty: bits per byte of an n-gram model on this text (`data.ngram_loss`).
    parameters: of the model.
    seen: characters that the run trains on, repeats included.
    text: characters of the training part.
    subwords: whether a token is a subword.
    """

    difficulty: float
    parameters: float
    seen: float
    text: float
    subwords: bool

    @property
    def worth(self) -> float:
        """The characters seen, where a repeated one counts less with each pass."""
        if self.seen <= self.text:
            return self.seen
        repeats = (self.seen - self.text) / self.text
        worth_of_repeats = WORTH_OF_PASSES * (1 - math.exp(-repeats / WORTH_OF_PASSES))
        return self.text * (1 + worth_of_repeats)

    def features(self) -> dict[str, float]:
        """Return what the weights in loss_constants.py are for."""
        return {
            "one": 1.0,
            "log_parameters": math.log(self.parameters),
            "inverse_power_of_worth": (MILLION / self.worth) ** POWER,
            "log_text": math.log(min(self.text, TEXT_THAT_COUNTS)),
            "subwords": float(self.subwords),
        }

    def sizes(self) -> dict[str, float]:
        """Return what is compared with the range of what was measured."""
        return {
            "difficulty": self.difficulty,
            "parameters": self.parameters,
            "characters seen": self.seen,
            "characters of text": min(self.text, TEXT_THAT_COUNTS),
        }


@dataclass(frozen=True)
class Predicted:
    """The bits per byte that a run will reach; 9 of 10 runs lie between `low` and `high`.

    beyond: what lies outside of all that was measured; then the bar is wider, and a guess.
    """

    bits_per_byte: float
    low: float
    high: float
    beyond: tuple[str, ...] = ()


def predict(planned: Planned) -> Predicted:
    """Return which loss a run will reach."""
    log_factor = sum(WEIGHTS[name] * value for name, value in planned.features().items())
    bits = planned.difficulty * math.exp(log_factor)
    doublings = {name: _doublings(name, size) for name, size in planned.sizes().items()}
    if ("bpe" if planned.subwords else "char") not in TOKENIZERS:
        doublings["subwords" if planned.subwords else "characters as tokens"] = 1.0
    beyond = tuple(name for name, count in doublings.items() if count > HARDLY_BEYOND)
    # a guess: as far off again for each doubling beyond what was measured
    bar = BAR * (1 + sum(doublings.values()))
    return Predicted(bits, bits * math.exp(-bar), bits * math.exp(bar), beyond)


def _doublings(name: str, size: float) -> float:
    """Return how many times a size is doubled, or halved, beyond what was measured."""
    least, most = MEASURED[name]
    return max(0.0, math.log2(size / most), math.log2(least / size))
