"""LoRA's matrices: they begin at zero, only they train, and merged they compute the same."""

import parts
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from chatgot.config import LoraConfig
from chatgot.model.gpt import GPT, build_model, evaluating
from chatgot.model.lora import (
    LoraLinear,
    add_lora,
    draw_lora,
    frozen_state,
    has_lora,
    load_trained_state,
    merged,
    trained_state,
)
from chatgot.sampling.decoding import sampling_model

V = 20
ARCHITECTURES = ["gpt", "modern"]
SEED = 3


def plain(**keys: object) -> GPT:
    return build_model(parts.config(model=keys).model, V, parts.CPU, 1)


def with_lora(rank: int = 2, targets: list[str] | None = None, **keys: object) -> GPT:
    """Return the same model with fresh matrices."""
    model = plain(**keys)
    add_lora(model, LoraConfig(rank=rank, targets=targets))
    draw_lora(model, SEED)
    return model


def trained(**keys: object) -> GPT:
    """Return the same model with matrices that add something."""
    model = with_lora(**keys)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for tensor in trained_state(model).values():
            tensor.normal_(std=0.3, generator=generator)
    return model


def ids() -> torch.Tensor:
    return torch.randint(0, V, (3, 8), generator=torch.Generator().manual_seed(2))


def logits(model: GPT) -> torch.Tensor:
    with evaluating(model):
        return model(ids())[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fresh_matrices_change_no_bit_of_the_logits(architecture):
    keys = {"architecture": architecture}
    assert torch.equal(logits(with_lora(**keys)), logits(plain(**keys)))


def test_fresh_matrices_change_no_dropout_mask():
    losses = []
    for model in (plain(dropout=0.3), with_lora(dropout=0.3)):
        torch.manual_seed(4)
        losses.append(model.train()(ids(), ids())[1])
    assert torch.equal(*losses)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_merged_weights_give_the_logits_of_the_model_with_matrices(architecture, tied):
    keys = {"architecture": architecture, "tie_embeddings": tied, "n_layers": 3}
    model = trained(**keys)
    expected = logits(model)
    one = merged(model)
    assert not has_lora(one)
    assert (logits(one) - expected).abs().max() < 1e-5
    assert (expected - logits(plain(**keys))).abs().max() > 0.1
    assert list(one.state_dict()) == list(plain(**keys).state_dict())
    assert not any(p.requires_grad for p in one.parameters())
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora" in name)


def test_a_merged_model_shares_what_has_no_matrices():
    model = trained(targets=["proj"])
    one = merged(model)
    assert one.head.weight is one.token_embedding.weight
    assert one.head.weight.data_ptr() == model.head.weight.data_ptr()
    block = one.blocks[0]
    assert block.attention.qkv.weight.data_ptr() == model.blocks[0].attention.qkv.weight.data_ptr()
    assert not torch.equal(block.attention.proj.weight, model.blocks[0].attention.proj.weight)


def test_a_model_without_matrices_is_its_own_merged_model():
    model = plain()
    assert merged(model) is model


@pytest.mark.parametrize("kernel", ["sdpa", "products"])
def test_samples_come_from_the_merged_weights_and_change_nothing(kernel):
    model = trained().train()
    model.use_attention(kernel)
    before = parts.copied(model.state_dict())
    sampler = sampling_model(model)
    assert not any(isinstance(module, LoraLinear) for module in sampler.modules())
    assert sampler.blocks[0].attention.kernel == kernel
    assert not sampler.training
    assert model.training
    assert (logits(sampler) - logits(model)).abs().max() < 1e-5
    assert parts.same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("architecture", "targets", "expected"),
    [
        ("gpt", None, {"qkv", "proj", "up", "down"}),
        ("modern", None, {"qkv", "proj", "gate_up", "down"}),
        ("modern", ["down", "qkv"], {"qkv", "down"}),
    ],
)
def test_the_named_layers_get_matrices_and_no_others(architecture, targets, expected):
    model = with_lora(architecture=architecture, targets=targets)
    added = trained_state(model)
    assert {name.split(".")[-2] for name in added} == expected
    assert len(added) == 2 * len(expected) * len(model.blocks)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == added.keys()
    assert model.trained_count() == sum(tensor.numel() for tensor in added.values())


def test_the_frozen_weights_keep_their_names_and_bits():
    assert parts.same(frozen_state(with_lora()), dict(plain().state_dict()))


def test_matrices_are_drawn_from_the_seed_alone():
    model = with_lora()
    torch.manual_seed(77)
    before = torch.get_rng_state()
    assert parts.same(trained_state(with_lora()), trained_state(model))
    assert torch.equal(torch.get_rng_state(), before)
    draw_lora(model, SEED + 1)
    assert not parts.same(trained_state(with_lora()), trained_state(model))


def test_loaded_matrices_are_the_stored_ones():
    stored = parts.copied(trained_state(trained()))
    model = with_lora()
    load_trained_state(model, stored)
    assert parts.same(trained_state(model), stored)
    assert torch.equal(logits(model), logits(trained()))


def test_frozen_weights_get_no_gradient_and_cost_no_product():
    """A frozen layer of I x O weights takes 2 products a token instead of 3."""
    model = with_lora(rank=1, targets=["down"]).train()
    x = torch.ones(1, 5, 16, requires_grad=True)
    block = model.blocks[0]
    counter = FlopCounterMode(display=False)
    with counter:
        block.mlp.down(block.mlp.up(x)).sum().backward()
    tokens = 5
    C = 16
    d_hid = 24
    frozen = 2 * 2 * (2 * tokens * C * d_hid)
    added = 3 * (2 * tokens * (d_hid + C))
    assert counter.get_total_flops() == frozen + added
    model(ids(), ids())[1].backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {*trained_state(model)}


def test_a_frozen_weight_counts_two_thirds_in_the_flops_of_a_token():
    model = plain()
    in_products = sum(p.numel() for p in model.layers.parameters() if p.dim() >= 2)
    in_products += model.head.weight.numel()
    model_with = with_lora()
    expected = model.flops_per_token() - 2 * in_products + 6 * model_with.trained_count()
    assert model_with.flops_per_token() == expected
