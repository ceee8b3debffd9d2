"""GGUF files of models with the subwords of a tokenizer.json, against the tokenizer itself."""

import json
from dataclasses import replace

import harness
import llama_cpp
import plain_models
import pytest
import torch
from gguf_models import TEXT, loaded, write
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from chatgot.data.vocabulary import END_OF_TEXT
from chatgot.errors import ExportImpossible
from chatgot.exchange.from_gguf import read_gguf
from chatgot.exchange.to_gguf import FILE, GGUF
from chatgot.sampling.loading import LoadedModel

subwords = pytest.importorskip("chatgot.data.subwords")

_DIGITS = pre_tokenizers.Digits(individual_digits=True)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes(use_regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


# As the tokenizer.json of GPT-2, SmolLM2, Qwen3 and Llama 3 have them
PRE_TOKENIZERS = {
    "gpt-2": [_bytes(True)],
    "smollm": [_DIGITS, _bytes(True)],
    "qwen2": [pre_tokenizers.Split(Regex(_QWEN2), "isolated"), _bytes(False)],
    "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), _bytes(False)],
}


def with_subwords(model: LoadedModel, pre: str, padding: int = 0) -> LoadedModel:
    """Return a model like another one, with a small tokenizer trained on made-up text.

    padding: rows of its embedding that are no tokens.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator([harness.make_text(), TEXT * 3, "12345 67 890\n" * 3], trainer)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    vocabulary = subwords.Subwords.from_json(tokenizer.to_str())
    cfg = model.model.cfg
    rows = len(vocabulary) + padding
    other = plain_models.random_model("qwen3", rows, max_seq_length=cfg.max_seq_length)
    return replace(model, model=other, vocabulary=vocabulary)


@pytest.mark.parametrize("pre", list(PRE_TOKENIZERS))
def test_known_tokenizer_has_its_name_and_equal_ids(tmp_path, pre):
    """In the file read back, and in llama.cpp."""
    model = with_subwords(loaded(tmp_path), pre)
    folder, _ = write(model, tmp_path)
    text = f"{TEXT}\n\n  12345 it's WE'LL\r\n\n {TEXT}"
    ids = model.vocabulary.encode(text)
    assert len(ids) < len(text.encode()) * 0.7
    opened = GGUF.open(folder)
    assert opened.tokenizer.pre == pre
    assert opened.encode(text) == ids
    some = torch.tensor(ids[:100])
    with torch.no_grad():
        expected = model.model(some[None])[0][0]
    assert float((opened.logits(some) - expected).abs().max()) < 1e-4
    with llama_cpp.serving(folder / FILE) as server:
        assert server.tokens(text) == ids


def test_rows_that_are_no_tokens_have_names_that_stand_for_nothing(tmp_path):
    """llama.cpp wants one token for each row; ours are read back without them."""
    model = with_subwords(loaded(tmp_path), "qwen2", padding=3)
    folder, _ = write(model, tmp_path)
    start = read_gguf(folder / FILE)
    assert start.tokens == model.vocabulary.tokens
    assert start.tensors["token_embedding.weight"].equal(model.model.token_embedding.weight)
    ids = model.vocabulary.encode(TEXT)
    with torch.no_grad():
        expected = model.model(torch.tensor(ids[:50])[None])[0][0, -1]
    with llama_cpp.serving(folder / FILE) as server:
        assert server.tokens(TEXT) == ids
        found = server.complete(ids[:50], 1, n_probs=len(expected))
    (step,) = found["completion_probabilities"]
    logprobs = {token["id"]: token["logprob"] for token in step["top_logprobs"]}
    assert len(logprobs) == len(expected)
    for i, logprob in enumerate(expected.log_softmax(-1).tolist()):
        assert abs(logprobs[i] - logprob) < 1e-4


def test_unknown_tokenizer_is_refused_by_name(tmp_path):
    model = with_subwords(loaded(tmp_path), "qwen2")
    content = json.loads(model.vocabulary.json)
    content["model"]["ignore_merges"] = True
    model.vocabulary.json = json.dumps(content)
    with pytest.raises(ExportImpossible, match="taking known words whole"):
        write(model, tmp_path)


def test_composed_accents_are_said_to_be_missing(tmp_path):
    model = with_subwords(loaded(tmp_path), "qwen2")
    content = json.loads(model.vocabulary.json)
    content["normalizer"] = {"type": "NFC"}
    vocabulary = subwords.Subwords.from_json(json.dumps(content))
    _, remarks = write(replace(model, vocabulary=vocabulary), tmp_path)
    assert any("NFC" in remark for remark in remarks)
