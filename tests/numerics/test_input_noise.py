"""Noise in the tokens that a model reads: how much, from where, and independent of the split."""

import parts
import pytest
import torch

from chatgot.numerics.input_noise import with_noise
from chatgot.training.step import compute_gradients

KEY = (1337, 5)  # seed, position


def windows(B=64, T=100) -> torch.Tensor:
    """Return sequences of which no two share a token, (B, T)."""
    return torch.arange(B * T).view(B, T)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_about_the_share_of_tokens_is_replaced(share):
    noisy = with_noise(windows(), share, KEY, 0)
    # a token may be replaced by itself: one in T is
    assert (noisy != windows()).float().mean() == pytest.approx(share * 0.99, rel=0.15)


def test_tokens_are_replaced_by_others_of_their_window():
    noisy = with_noise(windows(), 0.5, KEY, 0)
    assert torch.equal(noisy // 100, windows() // 100)
    assert len(noisy.unique()) > 0.6 * noisy.numel()  # from all over it, not from one place


def test_without_noise_nothing_is_drawn_and_nothing_copied():
    x = windows()
    assert with_noise(x, 0.0, KEY, 0) is x


def test_a_sequences_noise_does_not_depend_on_those_beside_it():
    x = windows(8)
    parts_of_it = [with_noise(x[i : i + 3], 0.3, KEY, i) for i in range(0, 8, 3)]
    assert torch.equal(torch.cat(parts_of_it), with_noise(x, 0.3, KEY, 0))


@pytest.mark.parametrize(("key", "first"), [((1338, 5), 0), ((1337, 6), 0), ((1337, 5), 1)])
def test_each_seed_step_and_sequence_has_noise_of_its_own(key, first):
    x = torch.arange(100).repeat(2, 1)
    noisy = with_noise(x, 0.3, KEY, 0)
    assert not torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], with_noise(x, 0.3, key, first)[0])


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_a_noisy_step_does_not_depend_on_the_micro_batch(micro_batch_size):
    noisy = {"batch_size": 8, "input_noise": 0.2}
    whole = parts.run(training=noisy)
    split = parts.run(training=noisy)
    split.state.micro_batch.size = micro_batch_size
    assert compute_gradients(split) == pytest.approx(compute_gradients(whole).item(), rel=1e-6)


def test_a_step_reads_noise_and_is_to_predict_the_text():
    one_batch = {"batch_size": 8, "accumulate_grad_batches": 1}
    run = parts.run(training=one_batch | {"input_noise": 0.2})
    seen = []
    run.model.register_forward_pre_hook(lambda module, args: seen.append(args))
    compute_gradients(run)
    (read, targets), *rest = seen
    x, y = run.train_windows.batch(run.train_windows.starts(0, 8))
    assert not rest
    assert torch.equal(targets, y)
    assert torch.equal(read, with_noise(x, 0.2, (run.config.seed, 0), 0))
    assert not torch.equal(read, x)
