"""Which recipe fits a text and the minutes, and how its steps fill them: rules on numbers alone.

What was measured for these rules is in docs/experiments.md, "How a recipe is chosen for a text".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# A larger model learns more from each token, but it sees fewer of them: below so many tokens for
# each of its parameters, a smaller model gets further in the same time. That number grows with the
# root of the size: it is for a model of a million parameters.
LEAST_TOKENS_PER_PARAMETER = 0.7
# A model learns by heart a training text of fewer tokens than this. Twice the parameters need four
# times the text. It is for a model of a million parameters, and was measured with up to 4 million.
# For 14 million and more, a token for each second parameter is enough.
TOKENS_FOR_A_MILLION_PARAMETERS = 60_000
MOST_PARAMETERS_PER_TOKEN = 2  # of a large model
# Passes over the text after which a model mostly learns it by heart: one that has more parameters
# than the text has tokens, and a smaller one, for which repeated tokens lose their worth by then.
# Source of the latter: Muennighoff et al. 2023, arXiv:2305.16264.
MOST_PASSES = 11
MOST_PASSES_OF_A_SMALLER_MODEL = 16
# Passes over characters where a model has fewer parameters for each of them than this: dropout and
# noise cost it more than further passes bring. Measured on a megabyte.
PARAMETERS_PER_CHARACTER_FOR_DROPOUT = 5
MOST_PASSES_WITHOUT_DROPOUT = 5
# Passes of the larger one with noise in what it reads. Measured with characters alone: a subword
# says more, so a wrong one may harm more.
MOST_NOISY_PASSES = 22
INPUT_NOISE = 0.1
# From so many passes on weight decay pays, where a model has more parameters than the text tokens.
PASSES_WITHOUT_DECAY = 4
WEIGHT_DECAY = 0.1
LEAST_WEIGHT_DECAY = 0.01  # of all other runs
# From so many tokens for each parameter on, a model learns more where it is to foresee the tokens
# after the next one, too; in a shorter run they only distract it.
TOKENS_PER_PARAMETER_FOR_MULTI_TOKEN = 0.75
MULTI_TOKEN_WEIGHTS = (0.5, 0.25)
# Passes x parameters for each token of the training text: from so many on so much dropout pays.
DROPOUTS = ((60.0, 0.2), (25.0, 0.1))

# From so many bytes of training text on, subwords need fewer bits for each byte of held-out text
# than characters in the same time: there, a run of a text has subwords. docs/benchmarks.md has the
# measurements.
LEAST_BYTES_FOR_SUBWORDS = 900_000
# A text has fewer subwords than characters, and a model learns them by heart sooner. Characters end
# lower where a model has so many parameters for each subword, and the time is enough for so many
# passes over the characters.
PARAMETERS_PER_SUBWORD_FOR_CHARACTERS = 4
PASSES_FOR_CHARACTERS = 2
SMALL_VOCABULARY = 1024  # subwords of a text below BYTES_FOR_LARGE_VOCABULARY
LARGE_VOCABULARY = 2048
BYTES_FOR_LARGE_VOCABULARY = 4_000_000

MILLION = 1e6

SHARE_OF_TIME = 0.9  # of the minutes is planned with: other programs may slow the machine down
MOST_ROUNDS = 10  # of evaluations, and of samples
# A run until nothing gets better is evaluated more often, since evaluations decide when it ends.
MOST_EVALUATIONS_UNTIL_BEST = 24
SHARE_FOR_EVALUATIONS_UNTIL_BEST = 0.2  # of the steps' time, at most
EVALUATIONS_WITHOUT_GAIN = 4  # in a row; then the learning rate decays, or the run ends
SHARE_FOR_ROUNDS = 0.1  # of the time for evaluations, and for samples: a short run has fewer
LEAST_SHARE_FOR_STEPS = 0.5  # of the time, however long the rest takes
WARMUP_SHARE = 0.1  # of the steps at most; a longer run takes the recipe's own warmup


def tokenizer_for(training_bytes: float) -> Literal["char", "bpe"]:
    """Return what `data.tokenizer` should be for a training text of so many bytes."""
    return "bpe" if training_bytes >= LEAST_BYTES_FOR_SUBWORDS else "char"


def vocab_size_for(training_bytes: float) -> int:
    """Return what `data.vocab_size` should be for a training text of so many bytes."""
    is_large = training_bytes >= BYTES_FOR_LARGE_VOCABULARY
    return LARGE_VOCABULARY if is_large else SMALL_VOCABULARY


@dataclass(frozen=True)
class Recipe:
    """What decides whether a recipe fits: the size of its model.

    What a model learns by heart are the tokens of the text, be they characters or subwords. What it
    must see in the time is counted in characters: a subword counts as those that it has.
    """

    name: str
    parameters: int

    @property
    def tokens_needed(self) -> float:
        """The tokens that its model must see to get further than a smaller one."""
        return LEAST_TOKENS_PER_PARAMETER * self.parameters * math.sqrt(self.parameters / MILLION)

    @property
    def text_needed(self) -> float:
        """The tokens that a training text must have, or this model learns it by heart."""
        by_square = TOKENS_FOR_A_MILLION_PARAMETERS * (self.parameters / MILLION) ** 2
        return min(by_square, self.parameters / MOST_PARAMETERS_PER_TOKEN)

    def most_passes(self, training_tokens: int, in_characters: bool) -> float:
        """Return after how many passes over a text this model would only learn it by heart."""
        if not self.learns_by_heart(training_tokens):
            return MOST_PASSES_OF_A_SMALLER_MODEL
        if not in_characters:
            return MOST_PASSES
        if self.parameters < PARAMETERS_PER_CHARACTER_FOR_DROPOUT * training_tokens:
            return MOST_PASSES_WITHOUT_DROPOUT
        return MOST_NOISY_PASSES

    def learns_by_heart(self, training_tokens: int) -> bool:
        """Return whether it has more parameters than the training text has tokens."""
        return self.parameters > training_tokens

    def does_better_with_characters(self, passes: float, training_subwords: int) -> bool:
        """Return whether characters pay, where so many passes over them fit into the time."""
        least = PARAMETERS_PER_SUBWORD_FOR_CHARACTERS * training_subwords
        return passes >= PASSES_FOR_CHARACTERS and self.parameters >= least

    def dropout(self, passes: float, training_tokens: int) -> float:
        """Return the dropout for so many passes over a text."""
        if not self.learns_by_heart(training_tokens):
            return 0.0
        by_heart = passes * self.parameters / training_tokens
        return next((rate for least, rate in DROPOUTS if by_heart >= least), 0.0)

    def input_noise(self, passes: float, training_tokens: int, in_characters: bool) -> float:
        """Return the noise in what the model reads for so many passes over a text."""
        needed = passes > MOST_PASSES and self.learns_by_heart(training_tokens)
        return INPUT_NOISE if needed and in_characters else 0.0

    def multi_token_weights(self, passes: float, training_tokens: int) -> list[float]:
        """Return how much the tokens after the next one count in so many passes over a text."""
        least = TOKENS_PER_PARAMETER_FOR_MULTI_TOKEN * self.parameters
        return list(MULTI_TOKEN_WEIGHTS) if passes * training_tokens >= least else []

    def weight_decay(self, passes: float, training_tokens: int) -> float:
        """Return the weight decay for so many passes over a text."""
        pays = passes >= PASSES_WITHOUT_DECAY and self.learns_by_heart(training_tokens)
        return WEIGHT_DECAY if pays else LEAST_WEIGHT_DECAY


def recipes_for_text(recipes: Sequence[Recipe], training_tokens: int) -> list[Recipe]:
    """Return the recipes whose model is not far larger than the text; at least the smallest.

    recipes: the smallest first.
    """
    fitting = [recipe for recipe in recipes if recipe.text_needed <= training_tokens]
    return fitting or list(recipes[:1])


def largest_in_time(recipes: Sequence[Recipe], tokens_in_time: Mapping[str, float]) -> Recipe:
    """Return the largest recipe that sees enough tokens, else the smallest.

    tokens_in_time: for each recipe's name; one that is missing sees none.
    """
    largest = recipes[0]
    for recipe in recipes:
        if tokens_in_time.get(recipe.name, 0) >= recipe.tokens_needed:
            largest = recipe
    return largest


@dataclass(frozen=True)
class Costs:
    """What the parts of a run take, in seconds."""

    step: float  # with its share of the regular saves
    evaluation: float  # with the save of the best weights that it may bring
    samples: float  # one round of them
    start: float  # from now to the first step: building, proving and compiling the model
    end: float  # the evaluation over every validation token


@dataclass(frozen=True)
class Plan:
    """How many steps a run makes, and after how many it evaluates and shows samples.

    steps: of a run until nothing gets better, so many as it is expected to make.
    loop_seconds: what is left of the minutes for all but the start and the end.
    """

    steps: int
    eval_interval: int
    sample_interval: int
    passes: float  # over the training text
    seconds: float  # that all of it takes, about
    ends_early: bool  # because the text is short, not the time
    loop_seconds: float


def plan(
    costs: Costs,
    minutes: float,
    steps_of_a_pass: float,
    most_passes: float,
    until_best: bool = False,
) -> Plan:
    """Return how many steps fit into the minutes, with all that a run does besides.

    most_passes: over the text, after which the run ends though there is time left.
    until_best: the run ends when nothing gets better; then the steps are only expected.
    """
    seconds = SHARE_OF_TIME * 60 * minutes
    left = max(seconds - costs.start - costs.end, LEAST_SHARE_FOR_STEPS * seconds)
    most_evaluations = MOST_EVALUATIONS_UNTIL_BEST if until_best else MOST_ROUNDS
    evaluations = _rounds(left, costs.evaluation, most_evaluations)
    samplings = _rounds(left, costs.samples, MOST_ROUNDS)
    # one more evaluation and one more round of samples before the first step
    for_rounds = (evaluations + 1) * costs.evaluation + (samplings + 1) * costs.samples
    for_steps = max(left - for_rounds, LEAST_SHARE_FOR_STEPS * left)
    in_time = max(1, int(for_steps / costs.step))
    most = max(1, math.ceil(most_passes * steps_of_a_pass))
    steps = min(in_time, most)
    eval_interval = math.ceil(steps / evaluations)
    if until_best:
        # a short text may be learnt long before the minutes are over
        steps_for_one = costs.evaluation / (SHARE_FOR_EVALUATIONS_UNTIL_BEST * costs.step)
        eval_interval = min(max(eval_interval, math.ceil(steps_for_one)), steps)
    return Plan(
        steps=steps,
        eval_interval=eval_interval,
        sample_interval=math.ceil(steps / samplings),
        passes=steps / steps_of_a_pass,
        seconds=costs.start + steps * costs.step + for_rounds + costs.end,
        ends_early=most < in_time,
        loop_seconds=left,
    )


def _rounds(seconds: float, cost: float, most: int) -> int:
    """Return how often something is done that costs so many seconds."""
    return max(1, min(int(SHARE_FOR_ROUNDS * seconds / cost), most))


def warmup_for(steps: int, of_recipe: int) -> int:
    """Return the warmup of a run; a short run has a shorter one than the recipe's."""
    return min(of_recipe, int(WARMUP_SHARE * steps))
