"""Models from GGUF files: read as they were written, or refused by name."""

import json
from dataclasses import replace

import llama_cpp
import numpy as np
import plain_models
import pytest
import torch
from gguf import GGMLQuantizationType as Stored
from gguf import quantize
from gguf_models import TEXT, WIDE, loaded, write
from raw_gguf import ARRAY, BOOL, F32, F64, I32, STRING, U32, U64, RawGguf, RawTensor
from tiny_tokenizers import SPEECHES, changed

from chatgot.config import ModelConfig
from chatgot.data.subwords import PROBE, Subwords
from chatgot.data.vocabulary import END_OF_TEXT
from chatgot.errors import ImportRejected
from chatgot.exchange.byte_level_bpe import WORDS
from chatgot.exchange.from_gguf import BEGINS_TEXTS, OTHER_NAMES, read_gguf
from chatgot.exchange.to_gguf import FILE, GGUF
from chatgot.model.gpt import build_model

KINDS = list(plain_models.KINDS)
# the tokenizers of tiny_tokenizers.py, by the names that a GGUF has for them
TOKENIZERS = {"gpt-2": "gpt2", "smollm": "smollm2", "qwen2": "qwen2", "llama-bpe": "llama3"}
TEXTS = f"{TEXT}{SPEECHES}{PROBE.replace(END_OF_TEXT, '')}12345 it's WE'LL  a\r\n\r\n b"


def subwords(pre: str) -> Subwords:
    """Return a small tokenizer; Llama 3 takes known words whole, and nothing composes accents."""
    text = changed(TOKENIZERS[pre], model={"ignore_merges": pre == "llama-bpe"}, normalizer=None)
    return Subwords.from_json(text)


def with_subwords(model, pre: str):
    """Return a model like another one, with a small tokenizer."""
    vocabulary = subwords(pre)
    other = plain_models.random_model("llama", len(vocabulary), max_seq_length=128)
    return replace(model, model=other, vocabulary=vocabulary)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Return what makes a small file of a kind, or of a tokenizer, anew for each test."""
    folder = tmp_path_factory.mktemp("raw")
    made = {}

    def make(kind: str = "llama") -> RawGguf:
        if kind not in made:
            place = folder / kind
            place.mkdir()
            is_kind = kind in plain_models.KINDS
            model = loaded(place, kind if is_kind else "llama")
            made[kind] = write(model if is_kind else with_subwords(model, kind), place)[0] / FILE
        return RawGguf.of(made[kind])

    return make


def refused(file: RawGguf, folder, reason: str) -> None:
    """Check that a file is refused in one line that names the file and the reason."""
    path = file.write(folder / "model.gguf")
    with pytest.raises(ImportRejected) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert reason in message
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < len(str(path)) + 300


# --------------------------------------------------------------------------------------------------
# Our own exports come back


@pytest.mark.parametrize("kind", KINDS)
def test_our_export_comes_back_bit_for_bit(tmp_path, kind):
    model = loaded(tmp_path, kind)
    folder, _ = write(model, tmp_path)
    start = read_gguf(folder / FILE)
    ours = model.model.state_dict()
    assert ours.keys() <= start.tensors.keys()
    for name, tensor in start.tensors.items():
        assert tensor.dtype == torch.float32
        # GPT-2 has all biases there, zeros where ours has none
        assert torch.equal(tensor, ours.get(name, torch.zeros_like(tensor)))
        assert name in ours or name.endswith(".bias")
    assert start.tokens == model.vocabulary.tokens
    assert start.vocabulary is None
    assert start.kind == "gguf"


@pytest.mark.parametrize("kind", KINDS)
def test_shape_of_our_export_builds_the_same_model(tmp_path, kind):
    model = loaded(tmp_path, kind)
    start = read_gguf(write(model, tmp_path)[0] / FILE)
    cfg = model.model.cfg
    read = ModelConfig.model_validate(start.shape)
    assert (read.kv_heads, read.head_size) == (cfg.kv_heads, cfg.head_size)
    same = {"n_kv_head", "head_dim", "d_hid", "bias"}
    for key in start.shape.keys() - same:
        assert getattr(read, key) == getattr(cfg, key), key
    rebuilt = build_model(read, len(start.tokens), torch.device("cpu"), seed=0).eval()
    rebuilt.load_state_dict(start.tensors)
    ids = torch.tensor([model.vocabulary.encode(TEXT)])
    with torch.no_grad():
        assert torch.equal(rebuilt(ids)[0], model.model(ids)[0])


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "q8_0"])
@pytest.mark.parametrize("kind", ["gpt_untied", "qwen3", "llama"])
def test_quantised_weights_come_back_as_they_were_rounded(tmp_path, kind, dtype):
    model = loaded(tmp_path, kind, **WIDE)
    start = read_gguf(write(model, tmp_path, dtype)[0] / FILE)
    rounded = GGUF.as_rounded(model.model, dtype).state_dict()
    assert all(torch.equal(start.tensors[name], tensor) for name, tensor in rounded.items())


@pytest.mark.parametrize("pre", list(TOKENIZERS))
def test_subwords_come_back_with_the_same_ids(tmp_path, pre):
    model = with_subwords(loaded(tmp_path), pre)
    start = read_gguf(write(model, tmp_path)[0] / FILE)
    assert start.tokens == model.vocabulary.tokens
    assert start.vocabulary.encode(TEXTS) == model.vocabulary.encode(TEXTS)
    assert start.vocabulary.end_of_text_id == model.vocabulary.end_of_text_id
    text = f"One.\n{END_OF_TEXT}\nTwo."
    assert start.vocabulary.encode(text) == model.vocabulary.encode(text)


def test_every_known_way_to_cut_words_is_tested():
    assert TOKENIZERS.keys() == WORDS.keys()


@pytest.mark.parametrize("name", [*OTHER_NAMES, "default", None])
def test_other_names_of_words_mean_the_same_in_llama_cpp(raw, tmp_path, name):
    """And `default`, or none, are not GPT-2's words: they are refused."""
    file = raw("llama-bpe" if name in OTHER_NAMES else "gpt-2")
    ours = read_gguf(file.write(tmp_path / "model.gguf")).vocabulary
    file.remove("tokenizer.ggml.pre")
    if name:
        file.set("tokenizer.ggml.pre", STRING, name)
    path = file.write(tmp_path / "model.gguf")
    text = f"{TEXT}{SPEECHES}\n\n  12345 it's WE'LL\r\n\r\n b"
    with llama_cpp.serving(path) as server:
        same = server.tokens(text) == ours.encode(text)
    if name in OTHER_NAMES:
        assert same
        assert read_gguf(path).vocabulary.encode(TEXTS) == ours.encode(TEXTS)
    else:
        assert not same
        with pytest.raises(ImportRejected, match=r"tokenizer\.ggml\.pre"):
            read_gguf(path)


@pytest.mark.parametrize("pre", list(TOKENIZERS))
def test_add_bos_key_that_is_missing_means_what_it_means_in_llama_cpp(raw, tmp_path, pre):
    file = raw(pre)
    file.remove("tokenizer.ggml.add_bos_token")
    path = file.write(tmp_path / "model.gguf")
    with llama_cpp.serving(path) as server:
        begins = server.tokens("a")[0] == file.get("tokenizer.ggml.bos_token_id")
    assert begins == (pre in BEGINS_TEXTS)


def test_rows_of_llamas_heads_are_put_in_our_order(raw, tmp_path):
    """In llama, element 2 i is rotated with 2 i + 1; in our models, i with i + D / 2."""
    file = raw("llama_grouped")
    D = 6
    C = file.get("llama.embedding_length")
    rows = np.arange(4 * D, dtype="<f4")[:, None].repeat(C, 1)  # four heads
    file.tensor("blk.0.attn_q.weight").data = rows.tobytes()
    file.tensor("blk.0.attn_k.weight").data = rows[:D].tobytes()
    start = read_gguf(file.write(tmp_path / "model.gguf"))
    read = start.tensors["layers.0.attention.qkv.weight"][:, 0].tolist()
    order = [0, 2, 4, 1, 3, 5]
    heads = [D * head + element for head in range(4) for element in order]
    assert read[: 5 * D] == heads + order


def test_numbers_are_read_as_they_were_meant(raw, tmp_path):
    """A GGUF has 1e-5 as the nearest fp32, and some have it as fp64."""
    file = raw()
    key = "llama.attention.layer_norm_rms_epsilon"
    for kind in (F32, F64):
        file.set(key, kind, 1e-5)
        assert read_gguf(file.write(tmp_path / "model.gguf")).shape["layer_norm_eps"] == 1e-5


def test_values_that_may_be_left_out_have_their_defaults(raw, tmp_path):
    file = raw()
    left_out = ["attention.head_count_kv", "attention.key_length", "attention.value_length"]
    for key in (*left_out, "rope.dimension_count", "rope.freq_base", "vocab_size"):
        file.remove(f"llama.{key}")
    shape = read_gguf(file.write(tmp_path / "model.gguf")).shape
    assert shape["n_kv_head"] == shape["n_head"]
    assert shape["head_dim"] == shape["d_model"] // shape["n_head"]
    assert shape["rope_base"] == 10_000


def test_gpt2_of_another_program_has_the_tanh_form_of_gelu(raw, tmp_path):
    file = raw("gpt")
    file.remove("chatgot.activation")
    assert read_gguf(file.write(tmp_path / "model.gguf")).shape["activation"] == "gelu_tanh"


def test_neutral_keys_of_other_programs_change_nothing(raw, tmp_path):
    file = raw()
    expected = read_gguf(file.write(tmp_path / "model.gguf"))
    file.set("llama.rope.scaling.type", STRING, "none")
    file.set("llama.expert_count", U32, 0)
    file.set("general.license", STRING, "apache-2.0")
    file.set("tokenizer.ggml.unknown_token_id", U32, 0)
    read = read_gguf(file.write(tmp_path / "model.gguf"))
    assert read.shape == expected.shape
    assert read.tokens == expected.tokens


def test_token_that_the_file_says_ends_texts_ends_them(raw, tmp_path):
    file = raw("gpt-2")
    names = list(file.get("tokenizer.ggml.tokens"))
    i = names.index("</s>")
    names[names.index(END_OF_TEXT)] = "<|other|>"
    file.set("tokenizer.ggml.tokens", ARRAY, (STRING, names))
    file.set("tokenizer.ggml.eos_token_id", U32, i)
    start = read_gguf(file.write(tmp_path / "model.gguf"))
    assert start.vocabulary.end_of_text_id == i


def test_the_first_of_two_equal_merges_counts(raw, tmp_path):
    """As in llama.cpp."""
    file = raw("gpt-2")
    expected = read_gguf(file.write(tmp_path / "model.gguf")).vocabulary.encode(TEXTS)
    merges = file.get("tokenizer.ggml.merges")
    file.set("tokenizer.ggml.merges", ARRAY, (STRING, [*merges, *reversed(merges)]))
    start = read_gguf(file.write(tmp_path / "model.gguf"))
    assert start.vocabulary.encode(TEXTS) == expected


@pytest.mark.parametrize("stored", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16"])
def test_weights_of_each_common_kind_are_read(tmp_path, stored):
    folder, _ = write(loaded(tmp_path, "llama", **WIDE), tmp_path)
    file = RawGguf.of(folder / FILE)
    name = "blk.0.ffn_up.weight"
    tensor = file.tensor(name)
    values = np.frombuffer(tensor.data, "<f4").reshape(tensor.sizes[::-1])
    tensor.kind = int(Stored[stored])
    tensor.data = quantize(values, Stored[stored]).tobytes()
    start = read_gguf(file.write(tmp_path / "model.gguf"))
    up = start.tensors["layers.0.mlp.gate_up.weight"].chunk(2)[1].numpy()
    assert 0 < np.abs(up - values).max() < 0.1


# --------------------------------------------------------------------------------------------------
# What is refused by name

REFUSED_KEYS = {
    "scaled positions": ("llama.rope.scaling.type", STRING, "yarn", "rope.scaling.type' is 'yarn'"),
    "linear positions": ("llama.rope.scaling.factor", F32, 4.0, "rope.scaling.factor' is 4.0"),
    "a sliding window": ("llama.attention.sliding_window", U32, 4096, "sliding_window' is 4096"),
    "experts": ("llama.expert_count", U32, 8, "expert_count' is 8"),
    "a scale of logits": ("llama.logit_scale", F32, 0.5, "logit_scale' is 0.5"),
    "another architecture": ("general.architecture", STRING, "gemma3", "is 'gemma3'; gpt2, llama"),
    "an architecture that is a list": ("general.architecture", ARRAY, (U32, [1]), "a list of 1"),
    "a part": ("split.count", U32, 3, "one of several parts"),
    "half a rotation": ("llama.rope.dimension_count", U32, 4, "rope.dimension_count is 4"),
    "odd values": ("llama.attention.value_length", U32, 4, "value_length is 4"),
    "heads of each layer": (
        "llama.attention.head_count_kv",
        ARRAY,
        (U32, [2, 1]),
        "head_count_kv is a list of 2",
    ),
    "heads that do not divide": ("llama.attention.head_count_kv", U32, 5, "multiple of n_kv_head"),
    "more layers than tensors": ("llama.block_count", U32, 999, "block_count is 999"),
    "a layer more": ("llama.block_count", U32, 3, "blk.2.attn_k.weight is missing"),
    "a layer less": ("llama.block_count", U32, 1, "it has 'blk.1."),
    "another width": ("llama.embedding_length", U32, 64, "expected ("),
    "another vocabulary": ("llama.vocab_size", U32, 7, "vocab_size is 7"),
    "SentencePiece": ("tokenizer.ggml.model", STRING, "llama", "model is 'llama'; byte-level BPE"),
    "unknown words": ("tokenizer.ggml.pre", STRING, "tekken", "pre is 'tekken'; gpt-2"),
    "words named default": ("tokenizer.ggml.pre", STRING, "default", "pre is 'default'"),
    "words that are a list": ("tokenizer.ggml.pre", ARRAY, (U32, [1]), "pre is a list"),
    "a token before texts": ("tokenizer.ggml.add_bos_token", BOOL, True, "before each text"),
    "tokens of another count": (
        "tokenizer.ggml.token_type",
        ARRAY,
        (I32, [1]),
        "expected one for each token",
    ),
    "no list of types": ("tokenizer.ggml.token_type", U32, 1, "expected one for each token"),
    "merges of no token": (
        "tokenizer.ggml.merges",
        ARRAY,
        (STRING, ["a zzz"]),
        "makes no token",
    ),
    "merges of one": ("tokenizer.ggml.merges", ARRAY, (STRING, ["a"]), "makes no token"),
    "merges that are numbers": ("tokenizer.ggml.merges", ARRAY, (U32, [1]), "a list of texts"),
    "a name that is no line": ("llama.a\nb\x1b[31m", U32, 1, r"llama.a\nb\x1b[31m"),
}


@pytest.mark.parametrize("case", REFUSED_KEYS)
def test_what_our_models_cannot_say_is_refused_by_name(raw, tmp_path, case):
    key, kind, value, reason = REFUSED_KEYS[case]
    file = raw("gpt-2")
    file.set(key, kind, value)
    refused(file, tmp_path, reason)


@pytest.mark.parametrize(
    "key",
    [
        "general.architecture",
        "llama.context_length",
        "llama.embedding_length",
        "llama.block_count",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ],
)
def test_missing_key_is_refused_by_name(raw, tmp_path, key):
    file = raw("gpt-2")
    file.remove(key)
    refused(file, tmp_path, key.removeprefix("llama."))


def test_llama_3_begins_texts_with_a_token_unless_its_file_says_no(raw, tmp_path):
    file = raw("llama-bpe")
    assert file.get("tokenizer.ggml.add_bos_token") is False
    read_gguf(file.write(tmp_path / "model.gguf"))
    file.remove("tokenizer.ggml.add_bos_token")
    refused(file, tmp_path, "before each text")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("blk.0.attn_q.bias", "it has 'blk.0.attn_q.bias'"),
        ("blk.1.ffn_gate_exps.weight", "it has 'blk.1.ffn_gate_exps.weight'"),
        ("rope_freqs.weight", "it has 'rope_freqs.weight'"),
        ("a\nb", r"it has 'a\nb'"),
    ],
)
def test_tensor_that_our_models_lack_is_refused_by_name(raw, tmp_path, name, reason):
    file = raw()
    file.tensors.append((name, RawTensor.of(np.zeros(12))))
    refused(file, tmp_path, reason)


def test_missing_tensor_is_refused_by_name(raw, tmp_path):
    for name in ("token_embd.weight", "output_norm.weight", "blk.1.ffn_down.weight"):
        file = raw()
        file.tensors = [item for item in file.tensors if item[0] != name]
        refused(file, tmp_path, f"{name} is missing")


def test_rows_without_a_token_are_refused(raw, tmp_path):
    """As in llama.cpp."""
    file = raw("gpt-2")
    tensor = file.tensor("token_embd.weight")
    tensor.sizes[1] += 1
    tensor.data += bytes(4 * tensor.sizes[0])
    refused(file, tmp_path, "token_embd.weight has the shape")


def test_unknown_activation_is_refused(raw, tmp_path):
    file = raw("gpt")
    file.set("chatgot.activation", STRING, "relu")
    refused(file, tmp_path, "activation")


@pytest.mark.parametrize("kind", [2, 6, 77, -1])
def test_token_of_another_type_is_refused(raw, tmp_path, kind):
    file = raw("gpt-2")
    types = list(file.get("tokenizer.ggml.token_type"))
    types[-1] = kind
    file.set("tokenizer.ggml.token_type", ARRAY, (I32, types))
    refused(file, tmp_path, "no type of byte-level BPE")


def test_weights_that_cannot_be_unpacked_say_what_to_do(raw, tmp_path):
    file = raw()
    tensor = file.tensor("blk.0.ffn_up.weight")
    tensor.kind = int(Stored.F64)
    tensor.data *= 2
    refused(file, tmp_path, "'blk.0.ffn_up.weight' is stored as F64, which is not read here")


def test_end_of_text_that_is_no_special_token_is_refused(raw, tmp_path):
    file = raw("gpt-2")
    types = list(file.get("tokenizer.ggml.token_type"))
    types = [4 if kind == 3 else kind for kind in types]
    file.set("tokenizer.ggml.token_type", ARRAY, (I32, types))
    refused(file, tmp_path, "is not one of its special tokens")
    for end in (U64, 1 << 63), (I32, -1), (STRING, "x"):
        file.set("tokenizer.ggml.eos_token_id", *end)
        refused(file, tmp_path, "no special token")


def test_read_tokenizer_is_written_again_as_it_was(tmp_path):
    """Export, import, export: the same tokens and merges."""
    model = with_subwords(loaded(tmp_path), "smollm")
    first = write(model, tmp_path)[0] / FILE
    vocabulary = read_gguf(first).vocabulary
    (tmp_path / "again").mkdir()
    second = write(replace(model, vocabulary=vocabulary), tmp_path / "again")[0] / FILE
    assert second.read_bytes() == first.read_bytes()
    assert json.loads(vocabulary.json)["model"]["type"] == "BPE"


def test_tokens_of_characters_come_back_in_any_script(tmp_path):
    model = loaded(tmp_path, characters="a\n é漢🐉")
    start = read_gguf(write(model, tmp_path)[0] / FILE)
    assert start.tokens == [END_OF_TEXT, *"a\n é漢🐉"]
