"""Which recipe a text and the minutes get, and how many steps: rules on made-up numbers."""

import pytest

from chatgot.training.recipe import (
    DROPOUTS,
    EVALUATIONS_WITHOUT_GAIN,
    INPUT_NOISE,
    LEAST_TOKENS_PER_PARAMETER,
    LEAST_WEIGHT_DECAY,
    MOST_EVALUATIONS_UNTIL_BEST,
    MOST_NOISY_PASSES,
    MOST_PARAMETERS_PER_TOKEN,
    MOST_PASSES,
    MOST_PASSES_OF_A_SMALLER_MODEL,
    MOST_PASSES_WITHOUT_DROPOUT,
    PARAMETERS_PER_CHARACTER_FOR_DROPOUT,
    PASSES_WITHOUT_DECAY,
    SHARE_FOR_EVALUATIONS_UNTIL_BEST,
    SHARE_OF_TIME,
    TOKENS_FOR_A_MILLION_PARAMETERS,
    TOKENS_PER_PARAMETER_FOR_MULTI_TOKEN,
    WEIGHT_DECAY,
    Costs,
    Recipe,
    largest_in_time,
    plan,
    recipes_for_text,
    tokenizer_for,
    vocab_size_for,
    warmup_for,
)

SMALL = Recipe("small", 1_000_000)
MIDDLE = Recipe("middle", 10_000_000)
LARGE = Recipe("large", 100_000_000)
ALL = [SMALL, MIDDLE, LARGE]
COSTS = Costs(step=0.1, evaluation=0.5, samples=0.5, start=2.0, end=3.0)
LONG_TEXT = 1e9  # steps of a pass: the text never ends the run


def enough(recipe: Recipe) -> float:
    """Return the tokens that a model must see: ten times the size takes 10 x root of 10 as many."""
    return LEAST_TOKENS_PER_PARAMETER * recipe.parameters * (recipe.parameters / 1e6) ** 0.5


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (1, ["small"]),
        (SMALL.parameters / MOST_PARAMETERS_PER_TOKEN, ["small"]),
        (MIDDLE.parameters / MOST_PARAMETERS_PER_TOKEN - 1, ["small"]),
        (MIDDLE.parameters / MOST_PARAMETERS_PER_TOKEN, ["small", "middle"]),
        (LARGE.parameters, ["small", "middle", "large"]),
    ],
)
def test_a_model_far_larger_than_the_text_is_left_out(text, names):
    assert [recipe.name for recipe in recipes_for_text(ALL, text)] == names


def test_a_model_of_twice_the_size_needs_four_times_the_text():
    double = Recipe("double", 2 * SMALL.parameters)
    assert double.text_needed == 4 * SMALL.text_needed
    assert SMALL.text_needed == TOKENS_FOR_A_MILLION_PARAMETERS


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        ({}, "small"),
        ({"small": 1.0}, "small"),
        ({"small": enough(SMALL), "middle": enough(MIDDLE) - 1}, "small"),
        ({"small": enough(SMALL), "middle": enough(MIDDLE)}, "middle"),
        ({"small": 0.0, "middle": 0.0, "large": enough(LARGE)}, "large"),
        ({"small": 1e12, "middle": 1e12, "large": enough(LARGE) - 1}, "middle"),
    ],
)
def test_the_largest_model_that_sees_enough_is_taken(tokens, name):
    assert largest_in_time(ALL, tokens).name == name


def test_more_minutes_never_take_a_smaller_model():
    tokens_per_s = {"small": 30_000, "middle": 3_000, "large": 300}
    sizes = []
    for minutes in (0.1, 1, 10, 100, 1_000, 10_000, 100_000):
        seen = {name: 60 * minutes * rate for name, rate in tokens_per_s.items()}
        sizes.append(largest_in_time(ALL, seen).parameters)
    assert sizes == sorted(sizes)
    assert sizes[0] == SMALL.parameters
    assert sizes[-1] == LARGE.parameters


def test_more_minutes_never_give_fewer_steps():
    steps = [plan(COSTS, minutes / 10, 1_000, 8).steps for minutes in range(1, 1_000)]
    assert steps == sorted(steps)


@pytest.mark.parametrize("minutes", [0.5, 1, 10, 60, 1_000])
def test_all_that_is_planned_fits_into_the_minutes(minutes):
    planned = plan(COSTS, minutes, LONG_TEXT, 8)
    assert 0.8 * SHARE_OF_TIME * 60 * minutes <= planned.seconds <= SHARE_OF_TIME * 60 * minutes


def test_costly_evaluations_leave_half_of_the_time_for_steps():
    costs = Costs(step=0.1, evaluation=100.0, samples=100.0, start=100.0, end=100.0)
    assert plan(costs, 1, LONG_TEXT, 8).steps == int(0.5 * 0.5 * SHARE_OF_TIME * 60 / costs.step)


@pytest.mark.parametrize("minutes", [1e-9, 1e-3, 1e9])
def test_there_is_at_least_one_step_and_no_interval_of_none(minutes):
    planned = plan(COSTS, minutes, 7.5, 8)
    assert planned.steps >= 1
    assert planned.eval_interval >= 1
    assert planned.sample_interval >= 1


@pytest.mark.parametrize("minutes", [10, 60])
def test_a_run_has_ten_evaluations_and_the_last_one_at_its_end(minutes):
    planned = plan(COSTS, minutes, LONG_TEXT, 8)
    assert 9 * planned.eval_interval < planned.steps <= 10 * planned.eval_interval


def test_a_short_run_has_fewer_evaluations():
    planned = plan(COSTS, 0.25, LONG_TEXT, 8)
    assert planned.steps < 5 * planned.eval_interval


def test_a_short_text_ends_the_run_after_its_last_useful_pass():
    planned = plan(COSTS, 60, 20, 8)
    assert planned.steps == 8 * 20
    assert planned.passes == 8
    assert planned.ends_early
    assert planned.seconds < 60 * 60 / 10


def test_a_long_text_does_not_end_the_run():
    assert not plan(COSTS, 60, LONG_TEXT, 8).ends_early


def test_a_model_larger_than_the_text_makes_fewer_passes():
    short = SMALL.parameters - 1
    assert SMALL.most_passes(short, in_characters=False) == MOST_PASSES
    assert SMALL.most_passes(short, in_characters=True) == MOST_PASSES_WITHOUT_DROPOUT
    shorter = SMALL.parameters // PARAMETERS_PER_CHARACTER_FOR_DROPOUT
    assert SMALL.most_passes(shorter + 1, in_characters=True) == MOST_PASSES_WITHOUT_DROPOUT
    assert SMALL.most_passes(shorter, in_characters=True) == MOST_NOISY_PASSES
    for in_characters in (False, True):
        long_enough = SMALL.most_passes(SMALL.parameters, in_characters)
        assert long_enough == MOST_PASSES_OF_A_SMALLER_MODEL


def test_dropout_comes_with_passes_and_with_a_small_text():
    """Half the text, or twice the passes: as much is learnt by heart."""
    (most, high), (some, low) = DROPOUTS
    short = SMALL.parameters // 5
    assert SMALL.dropout(some / 5 - 0.01, short) == 0.0
    assert SMALL.dropout(some / 5, short) == low
    assert SMALL.dropout(most / 5, short) == high
    assert SMALL.dropout(most / 10, short // 2) == high


def test_weight_decay_comes_with_many_passes():
    short = SMALL.parameters - 1
    assert SMALL.weight_decay(PASSES_WITHOUT_DECAY - 0.01, short) == LEAST_WEIGHT_DECAY
    assert SMALL.weight_decay(PASSES_WITHOUT_DECAY, short) == WEIGHT_DECAY


def test_noise_comes_with_more_passes_than_a_model_makes_without():
    short = SMALL.parameters - 1
    assert SMALL.input_noise(MOST_PASSES, short, in_characters=True) == 0.0
    assert SMALL.input_noise(MOST_PASSES + 0.01, short, in_characters=True) == INPUT_NOISE
    assert SMALL.input_noise(100, short, in_characters=False) == 0.0
    assert SMALL.input_noise(100, SMALL.parameters, in_characters=True) == 0.0


def test_later_tokens_pay_where_a_run_sees_enough_for_each_parameter():
    least = TOKENS_PER_PARAMETER_FOR_MULTI_TOKEN
    assert SMALL.multi_token_weights(least - 0.001, SMALL.parameters) == []
    assert SMALL.multi_token_weights(least, SMALL.parameters) == [0.5, 0.25]
    assert SMALL.multi_token_weights(10 * least, SMALL.parameters // 10 - 1) == []
    assert SMALL.multi_token_weights(0.1 * least, 10 * SMALL.parameters) == [0.5, 0.25]


def test_a_model_smaller_than_the_text_needs_neither():
    assert SMALL.dropout(100, SMALL.parameters) == 0.0
    assert SMALL.weight_decay(100, SMALL.parameters) == LEAST_WEIGHT_DECAY


def test_a_short_run_has_a_short_warmup():
    assert warmup_for(steps=1, of_recipe=20) == 0
    assert warmup_for(steps=50, of_recipe=20) == 5
    assert warmup_for(steps=5_000, of_recipe=20) == 20


def test_a_long_text_has_subwords_and_a_longer_one_has_more_of_them():
    assert tokenizer_for(899_999) == "char"
    assert tokenizer_for(900_000) == "bpe"
    assert vocab_size_for(3_999_999) == 1024
    assert vocab_size_for(4_000_000) == 2048


def test_characters_pay_where_a_large_model_sees_a_text_often():
    few = SMALL.parameters // 4
    assert not SMALL.does_better_with_characters(1.9, few)
    assert SMALL.does_better_with_characters(2, few)
    assert not SMALL.does_better_with_characters(2, few + 1)


def test_a_run_until_nothing_gets_better_is_evaluated_more_often():
    usual = plan(COSTS, 60, LONG_TEXT, 8)
    often = plan(COSTS, 60, LONG_TEXT, 8, until_best=True)
    assert usual.steps / usual.eval_interval == pytest.approx(10, abs=0.1)
    assert often.steps / often.eval_interval == pytest.approx(24, abs=0.1)
    assert often.sample_interval == pytest.approx(usual.sample_interval, rel=0.05)
    assert EVALUATIONS_WITHOUT_GAIN < MOST_EVALUATIONS_UNTIL_BEST / 2


def test_evaluations_until_best_cost_a_fifth_of_the_steps_at_most():
    """The text is learnt in 160 steps, 16 seconds: 24 evaluations would take 12 more."""
    planned = plan(COSTS, 600, 20, 8, until_best=True)
    assert planned.steps == 160
    assert planned.eval_interval == 25
    assert COSTS.evaluation <= SHARE_FOR_EVALUATIONS_UNTIL_BEST * 25 * COSTS.step
    costly = Costs(step=0.1, evaluation=100.0, samples=0.5, start=2.0, end=3.0)
    assert plan(costly, 600, 20, 8, until_best=True).eval_interval == 160


def test_the_loop_has_the_minutes_without_start_end_and_reserve():
    planned = plan(COSTS, 10, LONG_TEXT, 8)
    assert planned.loop_seconds == SHARE_OF_TIME * 600 - COSTS.start - COSTS.end
