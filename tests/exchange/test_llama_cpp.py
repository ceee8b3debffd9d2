"""Exported models in llama.cpp itself: tokens, probabilities, prompts, ends."""

from unittest.mock import patch

import llama_cpp
import pytest
import torch
import torch.nn.functional as F
from gguf_models import SPOILT, TEXT, loaded, write
from llama_cpp import LlamaServer, serving

from chatgot.exchange.to_gguf import FILE
from chatgot.sampling.loading import LoadedModel
from chatgot.sampling.speeches import Speech, prompt_text

NEW_TOKENS = 24
CLOSE = 1e-4  # of two log-probabilities; fp32 rounds sums in another order to about 1e-5
GELU_IN_FP16 = 5e-3
ONE_ROW = 3e-4  # a few inputs round to the next row of the table


def compare(model: LoadedModel, server: LlamaServer) -> tuple[float, bool]:
    """Return the largest difference of two log-probabilities, and whether all else is equal.

    What llama.cpp writes after the text, greedily, and all its log-probabilities on the way.
    """
    ids = model.vocabulary.encode(TEXT)
    found = server.complete(ids, NEW_TOKENS, n_probs=len(model.vocabulary))
    largest = 0.0
    written = []
    for step in found["completion_probabilities"]:
        with torch.no_grad():
            logits = model.model(torch.tensor([ids + written]))[0][0, -1]
        expected = logits.log_softmax(-1)
        assert len(step["top_logprobs"]) == len(model.vocabulary)
        for token in step["top_logprobs"]:
            largest = max(largest, abs(token["logprob"] - float(expected[token["id"]])))
        written.append(int(expected.argmax()))
    assert written
    same_text = model.vocabulary.decode(written) == found["content"]
    same_tokens = server.tokens(TEXT) == ids
    return largest, same_text and same_tokens


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_grouped", "qwen3_untied", "llama_grouped"])
def test_probabilities_tokens_and_greedy_text_are_ours(tmp_path, kind):
    model = loaded(tmp_path, kind)
    folder, _ = write(model, tmp_path)
    with serving(folder / FILE) as server:
        largest, equal = compare(model, server)
    assert largest < CLOSE
    assert equal


@pytest.mark.parametrize("kind", ["gpt_tanh", "gpt_without_biases"])
def test_gpt_is_ours_but_for_a_gelu_that_is_rounded_to_fp16(tmp_path, kind):
    """With GELU from such a table as llama.cpp's, ours is close."""

    def gelu(x, approximate="none"):
        from_table = exact(x.half().float(), approximate="tanh").half().float()
        return torch.where(x.abs() < 10, from_table, x.clamp(min=0))

    exact = F.gelu
    model = loaded(tmp_path, kind)
    folder, _ = write(model, tmp_path)
    with serving(folder / FILE) as server:
        largest, equal = compare(model, server)
        with patch("torch.nn.functional.gelu", gelu):
            rounded, _ = compare(model, server)
    assert largest < GELU_IN_FP16
    assert equal
    assert rounded < min(ONE_ROW, largest / 4)


@pytest.mark.parametrize("spoil", SPOILT)
def test_planted_mistake_shows_in_llama_cpp(tmp_path, spoil):
    model = loaded(tmp_path)
    folder, _ = write(model, tmp_path)
    spoil(folder)
    with serving(folder / FILE) as server:
        largest, equal = compare(model, server)
    assert largest > CLOSE or not equal


def test_chat_template_makes_our_prompt_and_answers_end(tmp_path):
    model = loaded(tmp_path)
    folder, _ = write(model, tmp_path)
    messages = [
        {"role": "system", "content": "ACT I\n\nScene 2. A room."},
        {"role": "user", "content": "Who is  there?\n\n"},
        {"role": "assistant", "content": "“I”, é ñ — 漢字 🐉."},
        {"role": "user", "name": "NURSE", "content": "Madam!\nMadam! "},
    ]
    speeches = [
        Speech("", "ACT I\n\nScene 2. A room."),
        Speech("ROMEO", "Who is  there?"),
        Speech("JULIET", "“I”, é ñ — 漢字 🐉."),
        Speech("NURSE", "Madam!\nMadam!"),
    ]
    with serving(folder / FILE) as server:
        assert server.prompt(messages) == prompt_text(speeches, "JULIET")
        answer = server.ask("/v1/chat/completions", messages=messages[1:3], max_tokens=8)
        assert answer["usage"]["completion_tokens"] == 8
        # the end of a text ends an answer and is not shown
        end = model.vocabulary.end_of_text_id
        forced = server.complete("JULIET:\n", 8, logit_bias=[[end, 1e4]])
        assert (forced["stop_type"], forced["content"]) == ("eos", "")
        # and in a prompt it is that token; what the vocabulary lacks is left out
        found = server.ask("/tokenize", content="a…b~~ç\n<|endoftext|>\n", parse_special=True)
        expected = model.vocabulary.encode("ab~~\n<|endoftext|>\n")
        assert found["tokens"] == expected


def test_other_dtypes_stay_close_in_llama_cpp(tmp_path):
    """It rounds what goes into a product, too, so it is no equality."""
    pytest.importorskip("xllamacpp")
    for dtype, close in (("fp16", 0.05), ("bf16", 0.3), ("q8_0", 0.5)):
        model = loaded(tmp_path, "qwen3", d_model=32, d_hid=64)
        folder, _ = write(model, tmp_path, dtype)
        with llama_cpp.serving(folder / FILE) as server:
            largest, _ = compare(model, server)
        assert largest < close
