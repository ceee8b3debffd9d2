"""What a model computes over cached keys and values equals what it computes over the whole text."""

import parts
import pytest
import torch

from chatgot.model.gpt import GPT, build_model, evaluating
from chatgot.sampling.decoding import sampling_model
from chatgot.sampling.key_value_cache import (
    Branching,
    KeyValueCache,
    OneToken,
    Reading,
    tokens_looked_at,
)

V = 19
T = 8
KINDS = {
    "gpt": {"architecture": "gpt"},
    "modern": {"architecture": "modern"},
    "grouped": {"architecture": "modern", "n_kv_head": 2},
    "one head of keys": {"architecture": "modern", "n_kv_head": 1},
    "other head size": {"architecture": "modern", "head_dim": 6, "qk_norm": False},
}
# other shapes may change the order of sums
CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(params=KINDS)
def net(request) -> GPT:
    shape = {"init_range": 0.3, "d_model": 32, "n_head": 4, **KINDS[request.param]}
    return build_model(parts.config(model=shape).model, V, parts.CPU, 1)


def ids(B: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


def cache_of(net: GPT, rows: int = 3) -> KeyValueCache:
    return KeyValueCache(net.cfg, rows, net.head.weight.detach())


def read(net: GPT, cache: KeyValueCache, row: int, x: torch.Tensor, past: int) -> torch.Tensor:
    """Return the logits of a text's next part, (1, T, V)."""
    positions = torch.arange(past, past + x.size(1))[None]
    return net(x, cache=Reading(cache, row, past, positions))[0]


@pytest.mark.parametrize("cuts", [(8,), (3, 8), (1, 2, 7, 8)])
def test_a_text_read_in_parts_has_the_logits_of_the_whole_text(net, cuts):
    x = ids()
    cache = cache_of(net)
    with evaluating(net):
        whole = net(x)[0]
        starts = (0, *cuts)
        found = [read(net, cache, 1, x[:, a:b], a) for a, b in zip(starts, cuts, strict=False)]
    assert torch.allclose(torch.cat(found, dim=1), whole, **CLOSE)


def test_one_token_for_texts_of_different_lengths_has_their_logits(net):
    x = ids(3)
    lengths = [7, 2, 5]
    cache = cache_of(net)
    with evaluating(net):
        whole = net(x)[0]
        for row, length in enumerate(lengths):
            read(net, cache, row, x[row : row + 1, :length], 0)
        positions = torch.tensor(lengths)[:, None]
        new = torch.stack([x[row, length] for row, length in enumerate(lengths)])[:, None]
        found = net(new, cache=OneToken(cache.k, cache.v, positions, torch.arange(T)))[0]
    for row, length in enumerate(lengths):
        assert torch.allclose(found[row, 0], whole[row, length], **CLOSE)


def test_what_earlier_texts_left_in_a_row_is_never_seen(net):
    x = ids()
    cache = cache_of(net)
    with evaluating(net):
        whole = net(x)[0]
        for tensor in (*cache.k, *cache.v):
            tensor.fill_(1000.0)
        read(net, cache, 0, x[:, :2], 0)
        one = net(
            x[:, 2:3], cache=OneToken(cache.k, cache.v, torch.tensor([[2]]), torch.arange(T))
        )[0]
        rest = read(net, cache, 0, x[:, 3:], 3)
    assert torch.allclose(torch.cat((one, rest), dim=1), whole[:, 2:], **CLOSE)


def test_branches_see_their_text_and_themselves_only(net):
    x = ids()
    cache = cache_of(net)
    branches = [[1, 2], [3], [4, 5, 6]]
    numbers = torch.tensor([0, 0, 1, 2, 2, 2])
    positions = torch.tensor([4, 5, 4, 4, 5, 6])
    visible = (numbers[:, None] == numbers) & (positions[:, None] >= positions)
    with evaluating(net):
        read(net, cache, 2, x[:, :4], 0)
        before = [tensor.clone() for tensor in (*cache.k, *cache.v)]
        new = torch.tensor([[token for branch in branches for token in branch]])
        found = net(new, cache=Branching(cache, 2, 4, positions[None], visible))[0][0]
        for number, branch in enumerate(branches):
            alone = net(torch.tensor([[*x[0, :4].tolist(), *branch]]))[0][0, 4:]
            assert torch.allclose(found[numbers == number], alone, **CLOSE)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (*cache.k, *cache.v), strict=True)
    )  # nothing is stored


def test_a_saved_and_a_copied_row_go_on_as_the_original(net):
    x = ids()
    cache = cache_of(net)
    with evaluating(net):
        whole = net(x)[0]
        read(net, cache, 0, x[:, :5], 0)
        cache.copy_row(0, 1, 5)
        saved = cache.saved(0, 5)
        for tensor in (*cache.k, *cache.v):
            tensor[0] = 1000.0
        cache.restore(2, saved, 4)
        assert torch.allclose(read(net, cache, 1, x[:, 5:], 5), whole[:, 5:], **CLOSE)
        assert torch.allclose(read(net, cache, 2, x[:, 4:], 4), whole[:, 4:], **CLOSE)


def test_the_memory_of_a_token_is_that_of_its_keys_and_values(net):
    cache = cache_of(net, rows=3)
    total = sum(tensor.nbytes for tensor in (*cache.k, *cache.v))
    assert cache.bytes_per_token * 3 * (T + 1) == total


def test_a_step_looks_at_whole_blocks_within_the_context():
    assert [tokens_looked_at(n, 1024) for n in (1, 64, 65, 1000, 1024)] == [64, 64, 128, 1024, 1024]
    assert tokens_looked_at(70, 100) == 100


# The model for sampling


def test_the_model_for_sampling_has_the_same_logits_and_weights(net):
    twin = sampling_model(net)
    with evaluating(net):
        for B, length in ((1, 1), (1, 8), (3, 5)):
            x = ids(B)[:, :length]
            assert torch.allclose(twin(x)[0], net(x)[0], **CLOSE)
    own = {id(parameter) for parameter in net.parameters()}
    assert {id(parameter) for parameter in twin.parameters()} == own


def test_making_the_model_for_sampling_leaves_the_original_as_it_is(net):
    net.train()
    net.recompute_every = 1
    layers = [type(module) for module in net.modules()]
    twin = sampling_model(net)
    assert not twin.training
    assert twin.recompute_every is None
    assert net.training
    assert net.recompute_every == 1
    assert [type(module) for module in net.modules()] == layers


def test_a_layer_with_a_bias_keeps_it_in_the_model_for_sampling():
    shape = {"architecture": "gpt", "bias": True, "init_range": 0.3}
    net = build_model(parts.config(model=shape).model, V, parts.CPU, 1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(0.5)
    with evaluating(net):
        assert torch.allclose(sampling_model(net)(ids())[0], net(ids())[0], **CLOSE)
