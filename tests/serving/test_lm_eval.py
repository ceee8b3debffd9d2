"""lm-eval's `local-completions`: what it asks, as it asks it, is answered with the model's numbers.

It scores a text by its ids behind the end-of-text token, with one token more that it does not use.
Source: lm_eval/models/openai_completions.py and lm_eval/utils.py of lm-eval 0.4.13
"""

import math

import parts
import pytest
import served

from chatgot.sampling.controls import Controls
from chatgot.sampling.engine import Engine, Request
from chatgot.sampling.loading import load_model

TEXTS = ("ANN:\nabc def", "Gin!", "BEN:\nabc abc abc")


def ids_of(server: served.Server, text: str) -> list[int]:
    body = {"prompt": text, "add_special_tokens": False}
    return server.post("/tokenize", **body).json()["tokens"]


def scored(server: served.Server, prompts: list[list[int]], **more: object) -> list[dict]:
    """Return the log-probabilities of prompts, as lm-eval asks for them."""
    body = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    answer = server.post("/v1/completions", model="tiny", prompt=prompts, **body, **more)
    assert answer.status_code == 200, answer.text
    choices = sorted(answer.json()["choices"], key=lambda choice: choice["index"])
    return [choice["logprobs"] for choice in choices]


def test_end_of_text_token_is_named_and_has_an_id(server):
    info = server.get("/tokenizer_info").json()
    assert info["bos_token"] is None
    assert ids_of(server, info["eos_token"]) == [0]


def test_ids_become_the_text_again(server):
    body = {"tokens": ids_of(server, TEXTS[0])}
    assert server.post("/detokenize", **body).json()["prompt"] == TEXTS[0]


def test_scores_of_texts_are_those_of_the_engine(server):
    """Within 1e-3 by the contract; with one text at a time they are equal to the last digits."""
    prompts = [[0, *ids_of(server, text)] for text in TEXTS]
    loaded = load_model(next(server.checkpoints.glob("*.pt")), parts.CPU)
    engine = Engine(loaded.model, loaded.vocabulary)
    controls = Controls(max_new_tokens=0)
    for prompt, logprobs in zip(prompts, scored(server, prompts), strict=True):
        (own,) = engine.complete([Request(tuple(prompt), controls, prompt_logprobs=True)])
        expected = math.fsum(token.logprob for token in own.prompt_tokens[1:])
        assert logprobs["token_logprobs"][0] is None
        assert math.fsum(logprobs["token_logprobs"][1:-1]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("bias", [{"0": 100}, {"0": -100}])
def test_one_token_follows_the_prompt_whichever_it_is(server, bias):
    """lm-eval leaves out the last one, also where the model ended the document."""
    prompt = [0, *ids_of(server, TEXTS[0])]
    (logprobs,) = scored(server, [prompt], logit_bias=bias)
    assert len(logprobs["token_logprobs"]) == len(prompt) + 1
    for token, best in zip(
        logprobs["token_logprobs"][1:-1], logprobs["top_logprobs"][1:-1], strict=True
    ):
        assert token <= max(best.values())
