"""Many texts at once: the cache changes nothing, whatever else grows beside a text."""

import parts
import pytest
import torch

from chatgot.data.vocabulary import END_OF_TEXT, END_OF_TEXT_ID, Characters
from chatgot.model.gpt import GPT, build_model, evaluating
from chatgot.sampling.controls import Controls
from chatgot.sampling.engine import Engine, Request, window_start

ALPHABET = "\n" + "".join(map(chr, range(97, 97 + 17)))
V = 1 + len(ALPHABET)
T = 8
KINDS = {
    "gpt": {"architecture": "gpt"},
    "modern": {"architecture": "modern"},
    "grouped": {"architecture": "modern", "n_head": 4, "n_kv_head": 2, "head_dim": 6},
}


def make_model(kind: str = "gpt", T: int = T, **keys) -> GPT:
    """Return a model in training mode, with dropout, that never ends a text by itself.

    Its weights are large, so that it makes varied choices without near ties.
    """
    shape = {"init_range": 1.0, "dropout": 0.5, "tie_embeddings": False}
    sections = parts.config(model={**shape, "max_seq_length": T, **KINDS[kind], **keys})
    model = build_model(sections.model, V, parts.CPU, 4)
    model.train()
    return model


@pytest.fixture(scope="module", params=KINDS)
def net(request) -> GPT:
    return make_model(request.param)


def engine(net: GPT, **keys) -> Engine:
    return Engine(net, Characters(ALPHABET), **keys)


NEVER_ENDS = {END_OF_TEXT_ID: -100.0}


def asked(prompt: list[int], n: int = 12, choice: int = 0, **keys) -> Request:
    """Return a request for n tokens; the end-of-text token is never drawn."""
    controls = Controls(**{"logit_bias": NEVER_ENDS, "max_new_tokens": n, **keys})
    return Request(tuple(prompt), controls, choice)


def ids(completion) -> list[int]:
    return [token.id for token in completion.tokens]


def random_prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(1, V, (length,), generator=generator).tolist()


def without_cache(net: GPT, prompt: list[int], n: int) -> list[int]:
    """Return the likeliest continuation, computed from the whole context for each token."""
    text = list(prompt)
    with evaluating(net):
        for _ in range(n):
            context = text[window_start(len(text), net.cfg.max_seq_length) :]
            logits = net(torch.tensor([context]))[0][0, -1].clone()
            logits[END_OF_TEXT_ID] -= 100
            text.append(int(logits.argmax()))
    return text[len(prompt) :]


# The window


def test_a_text_that_fits_is_seen_whole_and_a_longer_one_loses_halves():
    assert [window_start(n, 8) for n in (1, 8, 9, 12, 13, 16, 17)] == [0, 0, 4, 4, 8, 8, 12]
    assert [window_start(n, 7) for n in (7, 8, 11, 12)] == [0, 4, 4, 8]
    assert [window_start(n, 1) for n in (1, 2, 3)] == [0, 1, 2]


@pytest.mark.parametrize("context", [1, 2, 3, 7, 8, 64])
def test_a_window_is_never_longer_than_the_context_nor_shorter_than_half(context):
    for length in range(1, 5 * context + 3):
        seen = length - window_start(length, context)
        assert seen <= context
        assert seen > context // 2 or seen == length


# Greedy: with the cache as without


@pytest.mark.parametrize("length", [1, 3, T - 1, T, T + 1, 3 * T])
def test_greedy_text_with_the_cache_equals_text_without_it(net, length):
    prompt = random_prompt(length)
    (completion,) = engine(net).complete([asked(prompt, 5 * T, temperature=0)])
    assert ids(completion) == without_cache(net, prompt, 5 * T)
    assert len(set(ids(completion))) > 1
    assert completion.forgot


def test_greedy_texts_of_a_ragged_batch_equal_those_without_the_cache(net):
    """Prompts of many lengths, texts of many lengths, more of them than there are slots."""
    prompts = [random_prompt(length, seed) for seed in range(3) for length in (1, 5, 2, 9, 7, 30)]
    lengths = [3 + 5 * (i % 7) for i in range(len(prompts))]
    requests = [asked(p, n, temperature=0) for p, n in zip(prompts, lengths, strict=True)]
    completions = engine(net, slots=5).complete(requests)
    for completion, prompt, n in zip(completions, prompts, lengths, strict=True):
        assert ids(completion) == without_cache(net, prompt, n)
        assert completion.finish_reason == "length"


def test_long_prompts_are_read_in_parts_while_other_texts_grow(net, monkeypatch):
    monkeypatch.setattr("chatgot.sampling.engine.READ_AT_ONCE", 2)
    served = engine(net, slots=3)
    first = served.add(asked([1, 2], 20, temperature=0))
    served.step()
    second = served.add(asked(random_prompt(7), 20, temperature=0))
    before = len(first.tokens)
    while not second.tokens:
        served.step()
    assert len(first.tokens) - before == 4  # the prompt's parts: 2, 2, 2, 1
    while served.busy:
        served.step()
    assert ids(first) == without_cache(net, [1, 2], 20)
    assert ids(second) == without_cache(net, random_prompt(7), 20)


# Drawn texts


def test_a_seeded_text_is_the_same_alone_and_among_sixteen_others(net):
    requests = [
        asked(random_prompt(1 + i % 9, i), 10 + i, choice=i % 2, seed=i, temperature=0.9)
        for i in range(17)
    ]
    together = engine(net, slots=17).complete(requests)
    for request, completion in zip(requests, together, strict=True):
        (alone,) = engine(net, slots=1).complete([request])
        assert ids(alone) == ids(completion)
        assert alone.text == completion.text


def test_each_choice_of_a_seed_is_another_text(net):
    requests = [asked([1, 2, 3], choice=i, seed=5) for i in range(4)]
    texts = [completion.text for completion in engine(net).complete(requests)]
    assert len(set(texts)) == 4


def test_sampling_leaves_the_model_its_mode_and_all_generators_alone(net):
    net.zero_grad()
    x = torch.tensor([[1, 2, 3]])
    net(x, x)[1].backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    weights = parts.copied(net.state_dict())
    generator = torch.get_rng_state()
    engine(net).complete([asked([1, 2])])
    assert net.training
    assert all(module.training for module in net.modules())
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert parts.same(net.state_dict(), weights)


# What is reused


def read_lengths(served: Engine, monkeypatch) -> list[int]:
    """Return a list that gets the number of tokens of each part that is read."""
    lengths = []
    read = Engine._read

    def noting(self, row, ids, past):
        lengths.append(len(ids))
        return read(self, row, ids, past)

    monkeypatch.setattr(Engine, "_read", noting)
    return lengths


@pytest.fixture(scope="module")
def wide() -> GPT:
    return make_model("modern", T=64)


def test_several_completions_read_their_prompt_once(wide, monkeypatch):
    served = engine(wide)
    lengths = read_lengths(served, monkeypatch)
    prompt = random_prompt(30)
    served.complete([asked(prompt, 3, choice=i, seed=1) for i in range(5)])
    assert lengths == [30, 1, 1, 1, 1]


def test_the_next_turn_reads_only_what_is_new(wide, monkeypatch):
    served = engine(wide)
    lengths = read_lengths(served, monkeypatch)
    prompt = random_prompt(20)
    (answer,) = served.complete([asked(prompt, 5, temperature=0)])
    served.complete([asked(random_prompt(3), 2)])  # somebody else takes the slot
    turn = [*prompt, *ids(answer), 4, 5]
    (answer,) = served.complete([asked(turn, 5, temperature=0)])
    assert lengths == [20, 3, 3]  # the answer's last token was never read
    assert ids(answer) == without_cache(wide, turn, 5)


def test_a_prompt_asked_again_differs_in_nothing(wide):
    served = engine(wide)
    prompt = random_prompt(33)
    (first,) = served.complete([asked(prompt, 40, temperature=0)])
    (second,) = served.complete([asked(prompt, 40, temperature=0)])
    assert ids(first) == ids(second) == without_cache(wide, prompt, 40)


# Slots


def test_a_cancelled_completion_frees_its_slot_for_the_next(net):
    served = engine(net, slots=1)
    first = served.add(asked([1, 2], 10**6))
    second = served.add(asked([3], 4, temperature=0))
    for _ in range(20):
        served.step()
    assert (served.active, served.waiting) == (1, 1)
    served.cancel(first)
    assert first.finish_reason == "cancelled"
    while served.busy:
        served.step()
    assert ids(second) == without_cache(net, [3], 4)
    assert (served.active, served.waiting) == (0, 0)
    served.cancel(second)
    assert second.finish_reason == "length"


def test_a_waiting_completion_can_be_cancelled(net):
    served = engine(net, slots=1)
    served.add(asked([1], 5))
    waiting = served.add(asked([2], 5))
    served.step()
    assert served.waiting == 1
    served.cancel(waiting)
    assert served.waiting == 0
    while served.busy:
        served.step()
    assert not waiting.tokens


def test_a_stream_that_is_closed_cancels_its_completion(net):
    served = engine(net)
    stream = served.stream(asked([1, 2], 100))
    completion = next(stream)
    assert len(completion.text) == 1
    stream.close()
    assert completion.finish_reason == "cancelled"
    assert not served.busy


# The end


def test_the_end_of_text_token_ends_a_text_and_is_not_shown(net):
    (whole,) = engine(net).complete([asked([1, 2], 12, temperature=0)])
    forced = {END_OF_TEXT_ID: 1e9}
    (completion,) = engine(net).complete([asked([1, 2], logit_bias=forced)])
    assert (completion.text, completion.tokens) == ("", [])
    assert (completion.finish_reason, completion.stopped_by) == ("stop", END_OF_TEXT)
    assert len(whole.text) == 12


def test_a_text_ends_before_its_stop_string(net):
    (whole,) = engine(net).complete([asked([1, 2], 30, temperature=0)])
    stop = whole.text[10:12]
    (completion,) = engine(net).complete([asked([1, 2], 30, temperature=0, stop=(stop,))])
    assert completion.text == whole.text[: whole.text.index(stop)]
    assert (completion.finish_reason, completion.stopped_by) == ("stop", stop)


def test_an_empty_prompt_begins_a_new_document(net):
    (completion,) = engine(net).complete([asked([], 6, temperature=0)])
    assert ids(completion) == without_cache(net, [END_OF_TEXT_ID], 6)


def test_no_token_is_drawn_where_none_is_asked_for(net):
    (completion,) = engine(net).complete([asked([1, 2], 0)])
    assert (completion.tokens, completion.finish_reason) == ([], "length")


# Log-probabilities


def plain_logprobs(net: GPT, text: list[int]) -> torch.Tensor:
    """Return log-probabilities of what follows each token of a text that fits, (T, V)."""
    with evaluating(net):
        return net(torch.tensor([text]))[0][0].log_softmax(-1)


def test_log_probabilities_are_the_models_own(net):
    prompt = [1, 2, 3]
    controls = Controls(temperature=0.3, top_k=2, max_new_tokens=4, logit_bias=NEVER_ENDS)
    (completion,) = engine(net).complete([Request(tuple(prompt), controls, top_logprobs=3)])
    expected = plain_logprobs(net, [*prompt, *ids(completion)])
    for i, token in enumerate(completion.tokens):
        row = expected[len(prompt) + i - 1]
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-5)
        best = row.topk(3)
        assert [other for other, _ in token.top] == best.indices.tolist()
        assert [lp for _, lp in token.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_log_probabilities_are_left_out_where_nobody_asked(net):
    (completion,) = engine(net).complete([asked([1], 2)])
    assert [(token.logprob, token.top) for token in completion.tokens] == [(None, ())] * 2


@pytest.mark.parametrize("length", [1, 2, T, T + 1, 3 * T + 1])
def test_the_prompt_is_scored_in_the_windows_it_is_read_in(net, length):
    prompt = random_prompt(length)
    controls = Controls(max_new_tokens=0)
    served = engine(net)
    served.complete([asked(prompt, 2)])  # what is kept of it must not be taken
    request = Request(tuple(prompt), controls, top_logprobs=1, prompt_logprobs=True)
    (completion,) = served.complete([request])
    assert [token.id for token in completion.prompt_tokens] == prompt
    assert completion.prompt_tokens[0].logprob is None
    for i, token in enumerate(completion.prompt_tokens[1:], start=1):
        context = prompt[window_start(i, T) : i]
        row = plain_logprobs(net, context)[-1]
        assert token.logprob == pytest.approx(float(row[prompt[i]]), abs=1e-5)
        assert token.top[0][0] == int(row.argmax())


# Ranking


def test_continuations_are_ranked_by_their_whole_log_probability(wide):
    prompt = random_prompt(11)
    continuations = [[1, 2, 3], [4], [1, 2, 5, 6, 7], [2, 2]]
    scores = engine(wide).rank(prompt, continuations)
    for continuation, score in zip(continuations, scores, strict=True):
        rows = plain_logprobs(wide, [*prompt, *continuation])
        expected = sum(
            float(rows[len(prompt) + i - 1, token]) for i, token in enumerate(continuation)
        )
        assert score == pytest.approx(expected, abs=1e-4)


def test_ranking_beyond_the_context_sees_the_prompts_end(net):
    prompt = random_prompt(20)
    (score,) = engine(net).rank(prompt, [[3, 4]])
    context = prompt[window_start(22, T) :]
    rows = plain_logprobs(net, [*context, 3, 4])
    expected = float(rows[len(context) - 1, 3] + rows[len(context), 4])
    assert score == pytest.approx(expected, abs=1e-4)


def test_ranking_disturbs_no_text_that_grows(wide):
    served = engine(wide)
    completion = served.add(asked([1, 2, 3], 20, temperature=0))
    for _ in range(5):
        served.step()
        served.rank([1, 2, 3, 4], [[5, 6], [7]])
    while served.busy:
        served.step()
    assert ids(completion) == without_cache(wide, [1, 2, 3], 20)


def test_an_empty_prompt_ranks_what_begins_a_document(wide):
    assert engine(wide).rank([], [[3]]) == engine(wide).rank([END_OF_TEXT_ID], [[3]])


def test_a_continuation_that_cannot_be_ranked_is_refused(net):
    for wrong in ([[]], [[1] * T]):
        with pytest.raises(ValueError, match="continuation"):
            engine(net).rank([1], wrong)
