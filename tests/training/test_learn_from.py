"""A run with `data.learn_from`: its loss is that of these speakers' lines, and of nothing else."""

import itertools
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import parts
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from chatgot.config import Config
from chatgot.data.learned_lines import LearnedTokens
from chatgot.data.token_cache import Tokens
from chatgot.data.vocabulary import Characters
from chatgot.data.windows import TrainingWindows, ValidationWindows, Windows
from chatgot.errors import ConfigError
from chatgot.numerics.accumulation import add_gradients
from chatgot.numerics.precision import prove_mixed_precision
from chatgot.run.assembly import Run, assemble
from chatgot.run.diagnosis import describe_numbers
from chatgot.run.resuming import find_checkpoint, resume
from chatgot.stopping import never
from chatgot.training import evaluation, step
from chatgot.training.evaluation import measure_held_out
from chatgot.training.log_lines import header
from chatgot.training.step import compute_gradients, update_weights

# fp32: micro-batches change the order of the sums
ROUNDING = 1e-6
T = 8

SCENE = "ANN:\naaaa aa.\n\nBOB:\nOne, two, three, four.\nFive.\n\n" + "The scene. " * 3 + "\n\n"
TEXT = SCENE * 30
LINE = "aaaa aa.\n\n"


def tokens(text: str = TEXT) -> Tokens:
    vocabulary = Characters("".join(sorted(set(text))))
    ids = np.array(vocabulary.encode(text), dtype="<u2")
    return Tokens(ids, vocabulary, sha256(text.encode()).hexdigest(), "utf-8")


def tiny(names: list[str] | None = None, **sections: Any) -> Config:
    data = {"learn_from": names or ["ANN"], "test_split": 0.2}
    return parts.config(**{"data": data, **sections})


def new_run(stored: dict[str, Any] | None = None, text: str = TEXT, **sections: Any) -> Run:
    run = assemble(tiny(**sections), tokens(text), parts.CPU, stored)
    run.state.run_id = parts.RUN_ID
    run.model.train()
    return run


def is_learned(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return which tokens of the training and of the held-out part are in ANN's lines.

    They are found by searching the text.
    """
    text = run.vocabulary.decode(run.tokens.ids.tolist())
    flags = np.zeros(len(text), dtype=bool)
    at = text.find(f"ANN:\n{LINE}")
    while at >= 0:
        first = at + len("ANN:\n")
        flags[first : first + len(LINE)] = True
        at = text.find(f"ANN:\n{LINE}", first)
    n_train = len(run.train_windows.ids)
    return flags[:n_train], flags[n_train:]


def losses_of(run: Run, windows: Windows, flags: np.ndarray, start: int) -> torch.Tensor:
    """Return the losses of one window's learned targets, computed one by one."""
    window = torch.from_numpy(windows.ids[start : start + T + 1].astype(np.int64))
    logits, _ = run.model(window[None, :-1])
    places = [i for i in range(len(window) - 1) if flags[start + 1 + i]]
    return -logits[0].log_softmax(-1)[places, window[1:][places]]


def flat_gradient(run: Run) -> torch.Tensor:
    return torch.cat([p.grad.flatten().double() for p in run.model.parameters()])


def train(run: Run, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        update_weights(run, compute_gradients(run))
        losses.append(run.state.progress.train_loss)
    return losses


# The step


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 8])
def test_a_steps_gradient_is_that_of_its_learned_tokens_by_hand(micro_batch_size):
    """Whatever the micro-batch size: each has another number of learned tokens."""
    run = new_run()
    reference = new_run()
    run.state.micro_batch.size = micro_batch_size
    starts = reference.train_windows.starts(0, 8)
    flags, _ = is_learned(reference)
    losses = [losses_of(reference, reference.train_windows, flags, int(s)) for s in starts]
    assert len({len(part) for part in losses}) > 1
    expected = torch.cat(losses).mean()
    expected.backward()
    loss = compute_gradients(run)
    assert abs(loss - expected) <= ROUNDING * expected
    gradient = flat_gradient(reference)
    assert (flat_gradient(run) - gradient).norm() <= ROUNDING * gradient.norm()


def test_null_gives_the_bits_of_the_formula_without_any_counting():
    """And so does a span of all tokens."""
    run = parts.run()
    with_span = parts.run()
    plain = parts.run()
    windows = with_span.train_windows
    windows.learned = LearnedTokens(np.array([0]), np.array([len(windows.ids)]))
    total = torch.zeros(())
    starts = plain.train_windows.starts(0, 8)
    for first in range(0, 8, 3):
        x, y = plain.train_windows.batch(starts[first : first + 3])
        logits, _ = plain.model(x, y)
        loss = nn.functional.cross_entropy(logits.view(len(x) * T, -1), y.reshape(-1))
        share = loss * (len(x) / 8)
        share.backward()
        total += share.detach()
    for other in (run, with_span):
        loss = add_gradients(other.model, other.train_windows, starts, 3, (5, 0), lambda x: x)
        assert torch.equal(loss, total)
        assert torch.equal(flat_gradient(other), flat_gradient(plain))


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    model = {"dropout": 0.2}
    straight = new_run(model=model)
    run = new_run(model=model)
    losses = train(straight, 6)
    assert train(run, 3) == losses[:3]
    path = parts.checkpoint_file(tmp_path, run)
    config = tiny(model=model)
    point = find_checkpoint(str(path), config, Path("tiny.yaml"), set())
    resumed = new_run(point.content, model=model)
    resume(resumed, point)
    assert train(resumed, 3) == losses[3:]
    assert parts.same(resumed.model.state_dict(), straight.model.state_dict())
    assert parts.same(resumed.optimizer.state_dict(), straight.optimizer.state_dict())


def test_an_out_of_memory_step_is_done_again_with_the_same_loss(monkeypatch):
    run = new_run(training={"dynamic_batch_size": {"enabled": True}})
    expected = compute_gradients(new_run())
    attempts = []

    def full(model, windows, starts, size, *rest):
        attempts.append(size)
        if size > 1:
            raise MemoryError
        return add_gradients(model, windows, starts, size, *rest)

    monkeypatch.setattr(step, "add_gradients", full)
    assert abs(compute_gradients(run) - expected) <= ROUNDING * expected
    assert attempts == [4, 2, 1]


def test_tokens_seen_are_counted_as_without_learn_from():
    run = new_run()
    train(run, 2)
    assert run.state.progress.tokens == 2 * 8 * T


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_and_gradient_checkpointing_are_proven(precision):
    run = new_run(training={"gradient_checkpointing": True})
    assert run.model.recompute_every == 1
    batch = run.train_windows.batch(run.train_windows.starts(0, 4))
    assert prove_mixed_precision(run.model, batch, precision) is None
    assert "loss nan" not in describe_numbers(run.model, run.train_windows, run.state, run.config)


# The windows


@given(
    st.integers(0, 60),
    st.integers(1, 60),
    st.integers(2, 9),
    st.integers(0, 5),
)
def test_every_window_has_a_target_to_learn_from(begin, length, T, seed):
    """However rare those are, and wherever they lie; an epoch never visits one twice."""
    n = 100
    span = LearnedTokens(np.array([begin + 1]), np.array([min(begin + 1 + length, n)]))
    windows = TrainingWindows(np.zeros(n, "<u2"), T, 9, parts.CPU, seed, span)
    assert windows.per_epoch >= 1
    for epoch in range(5):
        starts = windows.starts(epoch, windows.per_epoch)
        assert len(set(starts.tolist())) == windows.per_epoch
        assert len({int(start) % T for start in starts}) == 1
        assert windows.targets(starts).min() >= 1
        assert (windows.batch(starts)[1] >= 0).any(dim=1).all()
        assert starts.min() >= 0
        assert starts.max() + T < n


def test_a_token_at_either_end_of_the_text_is_learned(monkeypatch):
    """Also where only some offsets of the grid are looked at."""
    monkeypatch.setattr("chatgot.data.windows.MOST_OFFSETS", 2)
    for place in (1, 97, 98, 99):
        span = LearnedTokens(np.array([place]), np.array([place + 1]))
        windows = TrainingWindows(np.arange(100, dtype="<u2"), 300 // 7, 100, parts.CPU, 0, span)
        _, y = windows.batch(windows.starts(0, 5))
        assert y[y >= 0].tolist() == [place] * 5


def test_a_pass_leaves_out_windows_without_a_learned_token():
    everything = assemble(tiny(data={"test_split": 0.2}), tokens(), parts.CPU, None)
    run = new_run()
    share = run.train_windows.per_epoch / everything.train_windows.per_epoch
    assert 0.1 < share < 0.5
    assert run.decay_steps == 10
    windows = run.train_windows
    seen = {int(s) + 1 + i for s in windows.starts(0, windows.per_epoch) for i in range(T)}
    learned = set(np.flatnonzero(is_learned(run)[0]).tolist())
    assert len(learned & seen) > 0.9 * len(learned)


# The evaluation


def validation_by_hand(run: Run, starts: list[int]) -> float:
    _, flags = is_learned(run)
    with torch.no_grad():
        losses = [losses_of(run, run.val_windows, flags, start) for start in starts]
    return torch.cat(losses).mean().item()


@pytest.mark.parametrize("eval_size", [1, 2, 3])
@pytest.mark.parametrize("eval_batches", [1, "all"])
def test_val_loss_is_that_of_the_learned_tokens_by_hand(eval_size, eval_batches):
    """However many windows go through at once, and with a shorter last one."""
    run = new_run(text=TEXT + "The", training={"eval_batches": eval_batches})
    run.state.micro_batch.eval_size = eval_size
    _, flags = is_learned(run)
    starts = [s for s in range(0, len(flags) - 1, T) if flags[s + 1 : s + 1 + T].any()]
    assert (len(flags) - 1) % T
    if eval_batches == 1:
        last = len(starts) - 1
        starts = [starts[round(place)] for place in np.linspace(0, last, 4)]
    loss, *_ = measure_held_out(run, never)
    assert loss == pytest.approx(validation_by_hand(run, starts), rel=1e-6)


def test_val_loss_is_the_same_when_memory_runs_out_half_way(monkeypatch):
    expected, *_ = measure_held_out(new_run(), never)
    run = new_run()
    calls = itertools.count()
    evaluate = evaluation.evaluate

    def full(*args: Any) -> float | None:
        if next(calls) == 0:
            raise MemoryError
        return evaluate(*args)

    monkeypatch.setattr(evaluation, "evaluate", full)
    loss, *_ = measure_held_out(run, never)
    assert run.state.micro_batch.eval_size == 2
    assert loss == pytest.approx(expected, rel=1e-6)


def test_validation_windows_are_spread_over_those_with_learned_tokens():
    ids = np.arange(1000, dtype="<u2")
    spans = LearnedTokens(np.array([11, 500, 990]), np.array([12, 700, 1000]))
    windows = ValidationWindows(ids, 8, 1000, parts.CPU, spans)
    ys = [row for _, y in windows.spread(6, 4) for row in y]
    assert len(ys) == 6
    assert all((y >= 0).any() for y in ys)
    assert [int(y[y >= 0][0]) for y in (ys[0], ys[-1])] == [11, 993]


# What the user reads


def test_the_log_says_how_many_tokens_are_learned_from():
    run = new_run()
    n, m = (flags.sum() for flags in is_learned(run))
    share = n / len(run.train_windows.ids)
    assert (
        f"learned from: the lines of ANN, {n} training tokens ({share:.1%}); "
        f"val_loss is that of {m} validation tokens"
    ) in header(run, Path("log"), Path("run"))
    of_all = header(parts.run(), Path("log"), Path("run"))
    assert not any(line.startswith("learned from") for line in of_all)


def test_a_refused_name_ends_the_assembly_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr("chatgot.run.assembly.choose_modes", lambda *_: pytest.fail("measured"))
    with pytest.raises(ConfigError, match="EVE never speaks"):
        new_run(data={"learn_from": ["EVE"]})
