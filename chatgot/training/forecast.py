"""A prediction of the loss of one run, in the words of its log, YAML and events."""

import math
from dataclasses import dataclass

from chatgot.training.predicted_loss import Predicted


@dataclass(frozen=True)
class Forecast:
    """What is predicted for a run before its first step.

    nats_per_bit: turns bits per byte into nats per token.
    subwords: whether a token is a subword; then bits per byte are said, too.
    difficulty: bits per byte of an n-gram model.
    tokens: that the run is to train on, repeats included.
    twice: what twice the minutes would end with; None: the minutes do not end the run.
    """

    predicted: Predicted
    nats_per_bit: float
    subwords: bool
    difficulty: float
    tokens: int
    twice: Predicted | None = None

    @property
    def loss(self) -> float:
        """The held-out loss, in nats per token."""
        return self.nats_per_bit * self.predicted.bits_per_byte

    @property
    def words(self) -> str:
        """The prediction in one sentence."""
        found = self.predicted
        low = self.nats_per_bit * found.low
        high = self.nats_per_bit * found.high
        loss = f"{self.loss:.3g}"
        bar = f"{low:.3g} and {high:.3g}"
        if self.subwords:
            loss += f" ({found.bits_per_byte:.3g} bits per byte)"
            bar += f" ({found.low:.3g} and {found.high:.3g})"
        return f"held-out loss about {loss}, in 9 of 10 runs between {bar}"

    @property
    def reason(self) -> str:
        """What the prediction comes from, and how far it can be trusted."""
        reason = f"An n-gram model needs {self.difficulty:.3g} bits per byte for this text"
        if self.predicted.beyond:
            beyond = ", ".join(self.predicted.beyond)
            reason += f". Outside of all that was measured, so the bar is a guess: {beyond}"
        return reason

    @property
    def numbers(self) -> dict[str, object]:
        """The prediction for programs; losses in nats per token, others in bits per byte."""
        found = self.predicted
        numbers = {
            "low": self.nats_per_bit * found.low,
            "high": self.nats_per_bit * found.high,
            "bits_per_byte": found.bits_per_byte,
            "low_bits_per_byte": found.low,
            "high_bits_per_byte": found.high,
            "ngram_bits_per_byte": self.difficulty,
            "tokens": self.tokens,
        }
        if self.twice is not None:
            numbers["twice_the_minutes"] = self.nats_per_bit * self.twice.bits_per_byte
        return {name: round(number, 5) for name, number in numbers.items()}


def nats_per_bit(tokens_per_byte: float) -> float:
    """Return what bits per byte are multiplied by to become nats per token."""
    return math.log(2) / tokens_per_byte
