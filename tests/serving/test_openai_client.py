"""The official client, unchanged: what it sends is understood, what it gets it understands."""

import math

import openai
import pytest
import served

NEVER_ENDS = served.NEVER_ENDS


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def ask(client, prompt="ANN:\n", **keys):
    keys = {"max_tokens": 12, "seed": 1, "logit_bias": NEVER_ENDS, **keys}
    return client.completions.create(model="tiny", prompt=prompt, **keys)


def talk(client, *said, **keys):
    messages = [{"role": "user", "content": text} for text in said]
    keys = {"max_completion_tokens": 12, "seed": 1, "logit_bias": NEVER_ENDS, **keys}
    return client.chat.completions.create(model="tiny", messages=messages, **keys)


def test_models_are_listed_with_their_speakers(client):
    (latest,) = client.models.list().data
    assert latest.id == f"{served.RUN_ID}:latest"
    about = latest.chatgot
    assert about["step"] == 0
    assert about["val_loss"] == 3.25
    assert about["context"] == 64
    assert about["vocabulary_size"] == len(served.ALPHABET) + 1
    assert [speaker["name"] for speaker in about["speakers"]] == ["ANN", "BEN", "GIN"]
    assert (about["user"], about["character"]) == ("BEN", "ANN")
    assert client.models.retrieve(latest.id).id == latest.id


def test_completion_goes_on_with_the_prompt(client):
    answer = ask(client, n=2)
    assert [len(choice.text) for choice in answer.choices] == [12, 12]
    assert answer.choices[0].text != answer.choices[1].text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == 24
    assert answer.choices[0].text == ask(client).choices[0].text


def test_streamed_completion_equals_the_whole_one(client):
    whole = ask(client, n=2, logprobs=2)
    texts = ["", ""]
    tokens = [[], []]
    offsets = [[], []]
    *chunks, last = ask(
        client, n=2, logprobs=2, stream=True, stream_options={"include_usage": True}
    )
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        tokens[choice.index] += choice.logprobs.tokens
        offsets[choice.index] += choice.logprobs.text_offset
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices]
    assert last.choices == []
    assert last.usage == whole.usage


@pytest.mark.parametrize("kind", ["texts", "ids"])
def test_several_prompts_are_answered_in_their_order(client, server, kind):
    texts = ["ANN:\n", "BEN:\nc"]
    prompts = texts
    if kind == "ids":
        prompts = [server.post("/tokenize", text=text).json()["tokens"] for text in texts]
    answer = ask(client, prompts, n=2, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    expected = [ask(client, text, n=2, echo=True) for text in texts]
    assert [c.text for c in answer.choices] == [c.text for e in expected for c in e.choices]
    assert answer.choices[2].text.startswith("BEN:\nc")


def test_log_probabilities_are_those_of_the_texts_tokens(client):
    (choice,) = ask(client, logprobs=5, temperature=0).choices
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert logprobs.text_offset == list(range(12))
    for token, logprob, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert len(top) == 5
        assert logprob <= max(top.values())
        assert top.get(token, logprob) == logprob


def test_scoring_alone_gives_the_prompts_log_probabilities(client):
    """What lm-eval's `local-completions` sums up; the sums do not depend on how it asks."""
    (scored,) = ask(client, "ANN:\nabc", max_tokens=0, echo=True, logprobs=1).choices
    assert scored.text == "ANN:\nabc"
    assert scored.logprobs.tokens == list("ANN:\nabc")
    assert scored.logprobs.token_logprobs[0] is None
    assert scored.logprobs.top_logprobs[0] is None
    (longer,) = ask(client, "ANN:\nabc", max_tokens=1, echo=True, logprobs=1).choices
    assert len(longer.logprobs.tokens) == 9
    assert longer.logprobs.token_logprobs[:-1] == scored.logprobs.token_logprobs
    assert sum(scored.logprobs.token_logprobs[1:]) < 0


def test_end_of_text_is_a_token_of_what_is_scored(client):
    """Whoever cuts the one written token off must not cut off one of the prompt's."""
    (choice,) = ask(
        client, "ANN:", max_tokens=1, echo=True, logprobs=1, logit_bias={"0": 100}
    ).choices
    assert choice.finish_reason == "stop"
    assert choice.text == "ANN:"
    assert choice.logprobs.tokens == [*"ANN:", "<|endoftext|>"]


def test_text_ends_before_a_stop(client):
    text = ask(client, max_tokens=30).choices[0].text
    stop = text[10:12]
    choice = ask(client, max_tokens=30, stop=[stop, "never"], logprobs=0).choices[0]
    assert choice.text == text[: text.index(stop)]
    assert choice.finish_reason == "stop"
    assert "".join(choice.logprobs.tokens) == choice.text
    streamed = ask(client, max_tokens=30, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == choice.text


def test_chat_answers_as_the_character(client):
    answer = talk(client, "hi BEN!", extra_body={"character": "GIN"})
    message = answer.choices[0].message
    assert message.role == "assistant"
    assert message.name == "GIN"
    text = ask(client, "BEN:\nhi BEN!\n\nGIN:\n", extra_body={}).choices[0].text
    assert message.content == text[: len(message.content)]
    assert talk(client, "hi").choices[0].message.name == "ANN"


def assert_same_tokens(read, expected):
    """Compare tokens exactly; where the prompt was kept, the last digits of their odds differ."""
    assert [token.bytes for token in read] == [token.bytes for token in expected]
    for one, other in zip(read, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        tops = [{top.token: top.logprob for top in token.top_logprobs} for token in (one, other)]
        assert tops[0] == pytest.approx(tops[1], abs=1e-5)


def test_streamed_chat_says_who_speaks_first(client):
    whole = talk(client, "hi", n=2, logprobs=True, top_logprobs=2)
    chunks = list(talk(client, "hi", n=2, logprobs=True, top_logprobs=2, stream=True))
    firsts = [chunk.choices[0] for chunk in chunks[:2]]
    assert [first.delta.role for first in firsts] == ["assistant", "assistant"]
    assert [first.delta.name for first in firsts] == ["ANN", "ANN"]
    for index, choice in enumerate(whole.choices):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        content = [token for c in own if c.logprobs for token in c.logprobs.content]
        assert_same_tokens(content, choice.logprobs.content)
        assert own[-1].finish_reason == choice.finish_reason
    token = whole.choices[0].logprobs.content[0]
    assert bytes(token.bytes).decode() == token.token
    assert len(token.top_logprobs) == 2
    assert math.isclose(max(top.logprob for top in token.top_logprobs), token.logprob, abs_tol=9)


def test_room_lets_the_model_choose_who_speaks(client):
    names = {
        talk(client, said, extra_body={"character": "auto", "room": ["GIN", "BEN"]})
        .choices[0]
        .message.name
        for said in ("a", "b!", "cd", "ANN", "?", "no")
    }
    assert names <= {"GIN", "BEN"}
    assert talk(client, "hi", extra_body={"character": "auto"}).choices[0].message.name != "BEN"


def test_only_the_newest_limit_counts(client):
    answer = talk(client, "hi", max_completion_tokens=5, max_tokens=9)
    assert answer.usage.completion_tokens <= 5


@pytest.mark.parametrize(
    ("keys", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"prompt": [[1, -1]]}, "prompt"),
        ({"prompt": [1, 10**30]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"seed": 2**70}, "seed"),
        (
            {"prompt": "a" * 20_000, "n": 7, "max_tokens": 0, "echo": True, "logprobs": 20},
            "logprobs",
        ),
    ],
)
def test_wrong_field_raises_the_clients_bad_request(client, keys, param):
    with pytest.raises(openai.BadRequestError) as raised:
        ask(client, **keys)
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"


def test_prompt_that_is_too_long_is_refused_by_its_code(client):
    with pytest.raises(openai.BadRequestError) as raised:
        ask(client, "a" * 40_000)
    assert raised.value.code == "context_length_exceeded"


def test_unknown_model_raises_the_clients_not_found(client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.completions.create(model="other", prompt="a")
    assert raised.value.code == "model_not_found"


def test_unknown_role_and_image_are_refused(client):
    for message in (
        {"role": "tool", "content": "a", "tool_call_id": "1"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
        {"role": "user", "content": "a", "name": "TWO\nLINES"},
    ):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="tiny", messages=[message])


def test_fields_that_nobody_knows_and_nulls_are_ignored(client):
    plain = ask(client).choices[0].text
    extra = {"mirostat": 2, "temperature": None, "stop": None, "top_k": 0, "min_p": 0.0}
    assert ask(client, extra_body=extra).choices[0].text == plain


def test_controls_reach_the_engine(client):
    greedy = ask(client, temperature=0).choices[0].text
    assert ask(client, temperature=0, seed=9).choices[0].text == greedy
    for keys in ({"top_k": 1}, {"min_p": 1.0}):
        assert ask(client, extra_body=keys).choices[0].text == greedy
    assert ask(client, top_p=0).choices[0].text == greedy
    biased = ask(client, logit_bias={"5": 100}).choices[0].text
    assert biased == served.ALPHABET[4] * 12
    for penalty in ("presence_penalty", "frequency_penalty"):
        keys = {"logit_bias": {"5": 100, "6": 99}, penalty: 2, "temperature": 0}
        assert set(ask(client, **keys).choices[0].text) == set(served.ALPHABET[4:6])
    dry = {"dry_multiplier": 50.0, "dry_allowed_length": 1}
    assert ask(client, logit_bias={"5": 60}, extra_body=dry).choices[0].text != biased


def test_requests_without_a_seed_differ(client):
    texts = {
        client.completions.create(model="tiny", prompt="A", logit_bias=NEVER_ENDS).choices[0].text
        for _ in range(3)
    }
    assert len(texts) > 1
