"""Recomputing activations changes memory and time, and not one bit of loss or gradients."""

import parts
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chatgot.assembly import Training
from chatgot.config import SamplingConfig
from chatgot.generation import generate
from chatgot.gradient_checkpointing import disable_gradient_checkpointing, enable_gradient_checkpointing
from chatgot.model import evaluating
from chatgot.step import accumulate_gradients


def run(precision: str = "fp32", **model) -> Training:
    return parts.run(precision=precision, model={"n_layers": 4, "dropout": 0.3, "attention_dropout": 0.3, **model})


def loss_and_gradients(training: Training) -> list[torch.Tensor]:
    training.model.zero_grad()
    loss = accumulate_gradients(training.model, training.train_windows, training.run, training.config, training.scaler)
    return [loss, *(p.grad for p in training.model.parameters())]


def passes(training: Training) -> list[int]:
    """Return how often each block ran in one micro-batch, forward and recomputation together."""
    training.run.micro_batch_size = 8
    counts = [0] * len(training.model.layers)
    hooks = []
    for i, block in enumerate(training.model.layers):

        def count(module, args, i=i):
            counts[i] += 1

        hooks.append(block.register_forward_pre_hook(count))
    loss_and_gradients(training)
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_and_gradients_are_bit_equal_with_and_without_though_dropout_is_on(every, precision):
    plain, recomputing = run(precision), run(precision)
    assert enable_gradient_checkpointing(recomputing.model, every=every)
    assert all(map(torch.equal, loss_and_gradients(recomputing), loss_and_gradients(plain)))


def test_the_comparison_would_notice_other_dropout_masks(monkeypatch):
    plain, recomputing = run(), run()
    enable_gradient_checkpointing(recomputing.model)
    generator = torch.Generator().manual_seed(0)  # private: recomputation does not restore it

    def private_dropout(x, p, training):
        return x * (torch.rand(x.shape, generator=generator) >= p) / (1 - p) if training else x

    monkeypatch.setattr(F, "dropout", private_dropout)
    expected = loss_and_gradients(plain)
    generator.manual_seed(0)
    assert not all(map(torch.equal, loss_and_gradients(recomputing), expected))


@pytest.mark.parametrize(("every", "expected"), [(1, [2, 2, 2, 2]), (2, [2, 1, 2, 1]), (3, [2, 1, 1, 2])])
def test_every_nth_block_is_recomputed_once(every, expected):
    training = run()
    assert passes(training) == [1, 1, 1, 1]
    assert enable_gradient_checkpointing(training.model, every=every)
    assert passes(training) == expected


def test_disabling_says_whether_it_was_on_and_ends_it():
    training = run()
    assert disable_gradient_checkpointing(training.model) is False
    assert enable_gradient_checkpointing(training.model) is True
    assert enable_gradient_checkpointing(training.model, every=2) is True
    assert passes(training) == [2, 1, 2, 1]
    assert disable_gradient_checkpointing(training.model) is True
    assert disable_gradient_checkpointing(training.model) is False
    assert passes(training) == [1, 1, 1, 1]


@pytest.mark.parametrize("setting", [False, True, "every_2"])
def test_the_configuration_switches_it_on(setting):
    training = parts.run(model={"n_layers": 4}, training={"gradient_checkpointing": setting})
    assert passes(training) == {False: [1, 1, 1, 1], True: [2, 2, 2, 2], "every_2": [2, 1, 2, 1]}[setting]


def test_nothing_is_recomputed_in_evaluation():
    training = run()
    enable_gradient_checkpointing(training.model)
    counts = []
    training.model.layers[1].register_forward_pre_hook(lambda module, args: counts.append(1))
    x, y = training.train_windows.batch(training.train_windows.starts(0, 2))
    with evaluating(training.model):
        training.model(x, y)
    assert counts == [1]


def test_generation_uses_its_cache_though_gradient_checkpointing_is_on():
    plain, recomputing = run(init_range=1.0, tie_embeddings=False), run(init_range=1.0, tie_embeddings=False)
    enable_gradient_checkpointing(recomputing.model)
    greedy = SamplingConfig(temperature=0, max_new_tokens=20)
    texts = [list(generate(training.model, [1, 2], greedy, torch.Generator())) for training in (plain, recomputing)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


@pytest.mark.parametrize("net", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))])
def test_a_model_without_layers_is_left_as_it_is_with_one_warning(net, caplog):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert enable_gradient_checkpointing(net) is False
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert type(net).__name__ in caplog.text
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert disable_gradient_checkpointing(net) is False


def test_enabling_leaves_generators_gradients_weights_and_mode_alone():
    for training_mode in (True, False):
        training = run()
        loss_and_gradients(training)
        training.model.train(training_mode)
        gradients = [p.grad.clone() for p in training.model.parameters()]
        weights = parts.copied(training.model.state_dict())
        generator = torch.get_rng_state()
        enable_gradient_checkpointing(training.model)
        disable_gradient_checkpointing(training.model)
        assert torch.equal(torch.get_rng_state(), generator)
        assert all(torch.equal(p.grad, g) for p, g in zip(training.model.parameters(), gradients, strict=True))
        assert parts.same(training.model.state_dict(), weights)
        assert training.model.training is training_mode


@pytest.mark.parametrize("at_pass", [1, 2])
def test_an_error_in_a_block_comes_out_from_forward_and_from_recomputation_alike(at_pass):
    training = run()
    enable_gradient_checkpointing(training.model)
    calls = []

    def fail(module, args):
        calls.append(1)
        if len(calls) == at_pass:
            raise ZeroDivisionError("in a block")

    training.run.micro_batch_size = 8
    hook = training.model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="in a block"):
        loss_and_gradients(training)
    assert len(calls) == at_pass  # at the second pass it fired in backward
    hook.remove()
    assert all(map(torch.equal, loss_and_gradients(training), expected_plain()))


def expected_plain() -> list[torch.Tensor]:
    training = run()
    training.run.micro_batch_size = 8
    return loss_and_gradients(training)


def test_it_is_no_part_of_the_state_so_either_reads_the_others_weights():
    plain, recomputing = run(), run()
    enable_gradient_checkpointing(recomputing.model)
    assert list(plain.model.state_dict()) == list(recomputing.model.state_dict())
