"""Text from the model: the cache changes nothing, and the settings do what they say."""

import parts
import pytest
import torch

from chatgot.config import SamplingConfig
from chatgot.data.vocabulary import Vocabulary
from chatgot.model.gpt import GPT, build_model, evaluating
from chatgot.sampling.generation import continue_text, generate, pick_token

V = 19
T = 8


@pytest.fixture(scope="module")
def net() -> GPT:
    """Return a model in training mode, with dropout.

    Its weights are large, so that it makes varied choices without near ties.
    """
    keys = {"max_seq_length": T, "init_range": 1.0, "dropout": 0.5, "tie_embeddings": False}
    model = build_model(parts.config(model=keys).model, V, parts.CPU, 4)
    model.train()
    return model


def sampling(**keys) -> SamplingConfig:
    return SamplingConfig(**{"max_new_tokens": 12, **keys})


def tokens(net: GPT, prompt: list[int], seed: int = 0, **keys) -> list[int]:
    return list(generate(net, prompt, sampling(**keys), torch.Generator().manual_seed(seed)))


def without_cache(net: GPT, prompt: list[int], n: int) -> list[int]:
    """Return the likeliest continuation, computed from the whole context for each token.

    When the context is full, its older half is forgotten, as in `generate`.
    """
    context = prompt[-T:]
    found = []
    with evaluating(net):
        for _ in range(n):
            if len(context) > T:
                context = context[-(T // 2 + 1) :]
            token = int(net(torch.tensor([context]))[0][0, -1].argmax())
            context.append(token)
            found.append(token)
    return found


@pytest.mark.parametrize("length", [1, 3, T - 1, T, T + 1, 3 * T])
def test_greedy_text_with_the_cache_equals_text_without_it(net, length):
    prompt = torch.randint(
        0, V, (length,), generator=torch.Generator().manual_seed(length)
    ).tolist()
    given = list(prompt)
    found = tokens(net, prompt, temperature=0, max_new_tokens=5 * T)
    assert found == without_cache(net, prompt, 5 * T)
    assert len(set(found)) > 1
    assert prompt == given


def test_a_context_of_one_token_goes_on_beyond_it():
    cfg = parts.config(model={"max_seq_length": 1}).model
    model = build_model(cfg, V, parts.CPU, 4)
    assert len(tokens(model, [1, 2, 3], max_new_tokens=5)) == 5


def test_each_later_pass_sees_one_token_until_the_context_is_full(net):
    shapes = []
    hook = net.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[1]))
    tokens(net, [1, 2, 3], temperature=0, max_new_tokens=8)
    hook.remove()
    assert shapes == [3, 1, 1, 1, 1, 1, T // 2 + 1, 1]


def test_settings_that_leave_one_token_choose_the_likeliest(net):
    greedy = tokens(net, [1, 2], temperature=0)
    for seed in range(3):
        assert tokens(net, [1, 2], seed, temperature=1.0, top_k=1) == greedy
        assert tokens(net, [1, 2], seed, temperature=1.0, top_p=1.2e-38) == greedy
        assert tokens(net, [1, 2], seed, temperature=1e-3) == greedy
    assert tokens(net, [1, 2], 0, temperature=1.0) != greedy


def test_the_lowest_and_the_highest_allowed_temperature_give_text(net):
    assert tokens(net, [1, 2], temperature=1.2e-38) == tokens(net, [1, 2], temperature=0)
    assert len(tokens(net, [1, 2], temperature=3e38)) == 12


def drawn(logits: torch.Tensor, n: int = 400, **keys) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return [pick_token(logits, sampling(**keys), generator) for _ in range(n)]


def test_top_k_keeps_exactly_the_k_likeliest_tokens():
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0])
    assert set(drawn(logits, temperature=1.0, top_k=2)) == {1, 3}
    assert set(drawn(logits, temperature=1.0, top_k=3)) == {1, 2, 3}
    assert set(drawn(logits, temperature=1.0, top_k=99)) == {0, 1, 2, 3, 4}


def test_top_k_keeps_no_more_than_k_of_equally_likely_tokens():
    assert len(set(drawn(torch.zeros(5), temperature=1.0, top_k=1))) == 1
    assert len(set(drawn(torch.zeros(5), temperature=1.0, top_k=2))) == 2


def test_top_p_keeps_the_fewest_tokens_that_reach_the_probability():
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    assert set(drawn(logits, temperature=1.0, top_p=0.4)) == {1}
    assert set(drawn(logits, temperature=1.0, top_p=0.7)) == {1, 2}
    assert set(drawn(logits, temperature=1.0, top_p=1.0)) == {0, 1, 2, 3}


def test_temperature_sharpens_and_flattens_the_distribution():
    logits = torch.tensor([0.6, 0.4]).log()
    share = {t: drawn(logits, n=2000, temperature=t).count(0) / 2000 for t in (0.25, 1.0, 4.0)}
    expected = {t: 0.6 ** (1 / t) / (0.6 ** (1 / t) + 0.4 ** (1 / t)) for t in share}
    assert all(abs(share[t] - expected[t]) < 0.04 for t in share)  # 4 standard errors


def test_a_text_has_the_number_of_tokens_asked_for(net):
    assert [len(tokens(net, [1], max_new_tokens=n)) for n in (1, 2, 20)] == [1, 2, 20]


# The end of a text


def until(net: GPT, end_of_text: int | None, prompt: list[int], n: int = 12) -> list[int]:
    """Return a text of at most n tokens; the seed is always the same."""
    generator = torch.Generator().manual_seed(3)
    keys = sampling(temperature=1.0, max_new_tokens=n)
    return list(generate(net, prompt, keys, generator, end_of_text=end_of_text))


@pytest.mark.parametrize("place", [0, 1, 5, 11])
def test_the_end_of_text_token_ends_the_text_and_is_not_yielded(net, place):
    """Also as the first token, as the last token asked for, and beyond the context."""
    whole = until(net, None, [1, 2])
    end = whole[place]
    assert until(net, end, [1, 2]) == whole[: whole.index(end)]


def test_an_end_of_text_token_in_the_prompt_ends_nothing(net):
    lengths = set()
    for end in range(V):
        whole = until(net, None, [end, 1, 2])
        expected = whole[: whole.index(end)] if end in whole else whole
        assert until(net, end, [end, 1, 2]) == expected
        lengths.add(len(expected))
    assert 12 in lengths  # a whole text, although its prompt has the token


def test_every_token_is_yielded_where_no_end_of_text_token_is_given(net):
    found = until(net, None, [1, 2], n=200)
    assert len(found) == 200
    assert 0 in found


def test_text_ends_at_the_end_of_text_token(net):
    whole = text(net, 7, max_new_tokens=50)
    end = whole[20]
    vocabulary = Vocabulary(ALPHABET)
    settings = sampling(temperature=1.0, max_new_tokens=50)
    (end_of_text,) = vocabulary.encode(end)
    stream = continue_text(net, vocabulary, "abc", settings, 7, end_of_text=end_of_text)
    assert "".join(stream) == whole[: whole.index(end)]
    assert net.training


# Text


ALPHABET = "".join(map(chr, range(97, 97 + V)))


def text(net: GPT, *seed: int, **keys) -> str:
    return "".join(
        continue_text(net, Vocabulary(ALPHABET), "abc", sampling(temperature=1.0, **keys), *seed)
    )


def test_the_same_seed_gives_the_same_text_and_another_seed_another(net):
    torch.manual_seed(1)
    first = text(net, 7, 100, 1)
    torch.manual_seed(2)
    assert text(net, 7, 100, 1) == first
    assert len({first, text(net, 8, 100, 1), text(net, 7, 101, 1), text(net, 7, 100, 2)}) == 4
    assert len(first) == 12
    assert set(first) <= set(ALPHABET)


def test_text_is_yielded_piece_by_piece(net):
    stream = continue_text(net, Vocabulary(ALPHABET), "abc", sampling(), 1)
    assert len(next(stream)) == 1


def test_generating_does_not_touch_generators_mode_or_gradients(net):
    net.zero_grad()
    x = torch.tensor([[1, 2, 3]])
    net(x, x)[1].backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    weights = parts.copied(net.state_dict())
    generator = torch.get_rng_state()
    for training in (True, False):
        net.train(training)
        stream = continue_text(net, Vocabulary(ALPHABET), "abc", sampling(temperature=1.0), 1)
        for _ in stream:
            assert net.training is training  # also between two pieces
            assert torch.is_grad_enabled()
        assert all(module.training is training for module in net.modules())
    net.train()
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert parts.same(net.state_dict(), weights)


def test_a_stream_that_is_dropped_or_fails_restores_the_mode(net):
    stream = continue_text(net, Vocabulary(ALPHABET), "abc", sampling(), 1)
    next(stream)
    stream.close()
    assert net.training
    with pytest.raises(KeyError):
        next(continue_text(net, Vocabulary(ALPHABET), "abc§", sampling(), 1))
    hook = net.layers[1].register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tokens(net, [1, 2])
    hook.remove()
    assert net.training
    assert torch.is_grad_enabled()
