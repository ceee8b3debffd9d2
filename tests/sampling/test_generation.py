"""The samples of a run: the configuration's settings do what they say, and the seed decides."""

import parts
import pytest
import torch

from chatgot.config import SamplingConfig
from chatgot.data.vocabulary import Characters
from chatgot.model.gpt import GPT, build_model
from chatgot.sampling.generation import continue_texts, controls_of

ALPHABET = "".join(map(chr, range(97, 115)))
V = 1 + len(ALPHABET)


@pytest.fixture(scope="module")
def net() -> GPT:
    """Return a model in training mode, with dropout; its weights are large, its texts varied."""
    keys = {"init_range": 1.0, "dropout": 0.5, "tie_embeddings": False}
    model = build_model(parts.config(model=keys).model, V, parts.CPU, 4)
    model.train()
    return model


def texts_so_far(net: GPT, prompts: list[str], seed: int = 0, **keys) -> list[list[str]]:
    sampling = SamplingConfig(**{"max_new_tokens": 12, "temperature": 1.0, **keys})
    return list(continue_texts(net, Characters(ALPHABET), prompts, sampling, seed))


def texts(net: GPT, prompts: list[str], seed: int = 0, **keys) -> list[str]:
    return texts_so_far(net, prompts, seed, **keys)[-1]


def test_each_prompt_is_continued_with_the_tokens_asked_for(net):
    found = texts(net, ["abc", "d", "abcdefghij"])
    assert len(found) == 3
    assert all(len(text) <= 12 for text in found)
    assert max(map(len, found)) == 12
    assert set("".join(found)) <= set(ALPHABET)


def test_texts_grow_step_by_step(net):
    so_far = texts_so_far(net, ["abc"], max_new_tokens=5, temperature=0)
    lengths = [len(texts[0]) for texts in so_far]
    assert lengths == [1, 2, 3, 4, 5]


def test_the_seed_alone_decides_a_text(net):
    torch.manual_seed(1)
    first = texts(net, ["abc", "abc"], seed=7)
    torch.manual_seed(2)
    assert texts(net, ["abc", "abc"], seed=7) == first
    assert texts(net, ["abc", "abc"], seed=8) != first
    assert first[0] != first[1]  # each prompt has noise of its own


def test_the_configuration_sets_every_control(net):
    sampling = SamplingConfig(max_new_tokens=3, temperature=0.5, top_k=4, top_p=0.6)
    controls = controls_of(sampling, 9)
    assert controls.max_new_tokens == 3
    assert controls.temperature == 0.5
    assert controls.top_k == 4
    assert controls.top_p == 0.6
    assert controls.seed == 9


def test_settings_that_leave_one_token_choose_the_likeliest(net):
    greedy = texts(net, ["ab"], temperature=0)
    for seed in range(3):
        assert texts(net, ["ab"], seed, top_k=1) == greedy
        assert texts(net, ["ab"], seed, top_p=1.2e-38) == greedy
        assert texts(net, ["ab"], seed, temperature=1e-3) == greedy
    assert texts(net, ["ab"], 0) != greedy


def test_the_lowest_and_the_highest_allowed_temperature_give_text(net):
    assert texts(net, ["ab"], temperature=1.2e-38) == texts(net, ["ab"], temperature=0)
    assert len(texts(net, ["abc", "b", "c"], temperature=3e38)) == 3


def test_a_prompt_outside_the_vocabulary_is_an_error_and_changes_nothing(net):
    with pytest.raises(KeyError):
        texts(net, ["abc§"])
    assert net.training
    assert torch.is_grad_enabled()


def test_no_prompts_give_no_texts(net):
    assert texts_so_far(net, []) == []
