"""A model folder that lies, or is damaged, is refused in one line, at once and without memory."""

import json
import os
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from model_folders import change_json, exported_folder, joined_file, split_file

from chatgot.config import ModelConfig
from chatgot.errors import ImportRejected
from chatgot.exchange.from_transformers import read_hf
from chatgot.exchange.model_folder import shown
from chatgot.exchange.safetensors_file import open_safetensors
from chatgot.model.gpt import model_without_weights

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
NORM = "model.norm.weight"  # (16,), fp32
SECONDS = 5.0  # for a refusal: far more than it takes
MIB = 1 << 20
DEEP = "[" * 100_000 + "]" * 100_000


def refusal(folder: Path) -> str:
    """Return why a folder is refused; check that this is one line, quick, and takes no memory."""
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImportRejected) as error:
        read_hf(folder)
    assert time.perf_counter() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 200 * MIB
    message = str(error.value)
    assert len(message) < 500
    assert message.isprintable()
    assert message.startswith(str(folder))
    return message


@pytest.fixture
def folder(tmp_path):
    exported_folder(tmp_path)
    return tmp_path


@pytest.fixture
def ours(tmp_path):
    exported_folder(tmp_path, "qwen3", "safetensors")
    return tmp_path


def change_header(folder: Path, change) -> None:
    """Let `change` alter the header of the weights in place."""
    header, data = split_file((folder / WEIGHTS).read_bytes())
    change(header)
    (folder / WEIGHTS).write_bytes(joined_file(header, data))


# --------------------------------------------------------------------------------------------------
# config.json


@pytest.mark.parametrize("value", [0, -1, 10**9, 10**400, 1.5, True, "16", [], {}])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "head_dim"])
def test_a_size_that_is_none_is_refused(key, value, folder):
    change_json(folder / CONFIG, **{key: value})
    assert f"{key} is" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 1 << 20),
        ("intermediate_size", 1 << 24),
        ("num_hidden_layers", 10_000),
        ("num_attention_heads", 1 << 14),
        ("head_dim", 1 << 14),
        ("vocab_size", 1 << 20),
    ],
)
def test_a_size_that_would_take_terabytes_is_refused(key, value, folder):
    change_json(folder / CONFIG, **{key: value})
    refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0, 10**400, "1e-6", [], True])
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
def test_a_number_that_is_none_is_refused(key, value, folder):
    change_json(folder / CONFIG, **{key: value, "rope_parameters": None})
    assert key in refusal(folder)


@pytest.mark.parametrize("value", [5, True, 0.5, "x", [5], [[]], {"a": 1}])
@pytest.mark.parametrize(
    "key", ["layer_types", "rope_scaling", "quantization_config", "auto_map", "architectures"]
)
def test_a_value_of_another_type_is_refused_by_name(key, value, folder):
    change_json(folder / CONFIG, **{key: value})
    assert f"{key} is " in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"[]",
        b"null",
        b"7",
        b"{",
        b'{"model_type": "gpt2", "model_type": "llama"}',
        b"\xff\xfe{\0}\0",
        b'{"model_type": "\xff"}',
        b'{"n_embd": ' + b"9" * 5000 + b"}",
        DEEP.encode(),
        b'{"a": ' + DEEP.encode() + b"}",
        b'{"architectures": ' + b"[" * 900 + b"]" * 900 + b', "model_type": "llama"}',
        b'{"model_type": "\\ud800\\u202e\\n"}',
        b"{" + b" " * (5 * MIB) + b"}",
        b'{"format": "chatgot"}',
        b'{"format": "chatgot", "version": 1, "vocab_size": 5, "model": []}',
        b'{"format": "chatgot", "version": 1, "vocab_size": 5, "model": {"code": 1}}',
        b'{"format": "chatgot", "version": 1, "vocab_size": 1e9}',
    ],
)
def test_a_configuration_that_is_none_is_refused(content, folder):
    (folder / CONFIG).write_bytes(content)
    refusal(folder)


# --------------------------------------------------------------------------------------------------
# The header of the weights


def entry(dtype="F32", shape=(16,), data_offsets=(0, 64)):
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


@pytest.mark.parametrize(
    "value",
    [
        7,
        None,
        [],
        {},
        entry() | {"more": 1},
        entry(dtype="F31"),
        entry(dtype=[]),
        entry(dtype="I32"),
        entry(shape=16),
        entry(shape=[-16]),
        entry(shape=[-4, -4]),
        entry(shape=[16.0]),
        entry(shape=[True, 16]),
        entry(shape=["16"]),
        entry(shape=[17]),
        entry(shape=[4, 4]),
        entry(shape=[1 << 62, 1 << 62]),
        entry(shape=[1 << 32, 1 << 32, 0]),
        entry(shape=[1 << 63, 2]),
        entry(shape=[10**400]),
        entry(shape=[1] * 10_000),
        entry(data_offsets=[0]),
        entry(data_offsets=[64, 0]),
        entry(data_offsets=[-64, 0]),
        entry(data_offsets=[1, 65]),
        entry(data_offsets=[1 << 62, (1 << 62) + 64]),
        entry(data_offsets=[0, 1 << 63]),
        entry(data_offsets="0, 64"),
        entry(data_offsets=[0.0, 64.0]),
    ],
)
def test_an_entry_that_lies_is_refused(value, folder):
    change_header(folder, lambda header: header.update({NORM: value}))
    assert WEIGHTS in refusal(folder)


def shift(header):
    """Let the last tensor begin where the one before it does."""
    names = sorted(
        (name for name in header if name != "__metadata__"),
        key=lambda name: header[name]["data_offsets"],
    )
    before = header[names[-2]]["data_offsets"][0]
    begin, end = header[names[-1]]["data_offsets"]
    header[names[-1]]["data_offsets"] = [before, before + end - begin]


def gap(header):
    """Let no tensor be at the beginning."""
    names = [name for name in header if name != "__metadata__"]
    del header[min(names, key=lambda name: header[name]["data_offsets"])]


@pytest.mark.parametrize("change", [shift, gap])
def test_ranges_that_do_not_fill_the_file_are_refused(change, folder):
    change_header(folder, change)
    assert "the tensors overlap, or have gaps between them" in refusal(folder)


def test_an_empty_header_before_data_is_refused(folder):
    change_header(folder, dict.clear)
    assert "damaged or cut off" in refusal(folder)


@pytest.mark.parametrize("length", [3, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_its_file_is_refused(length, folder):
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + b"{}")
    assert f"it has 10 bytes, its header would have {length}" in refusal(folder)


def test_a_header_of_megabytes_is_not_read(folder):
    (folder / WEIGHTS).write_bytes(joined_file(b" " * (5 * MIB), b""))
    assert "its header has 5242880 bytes, at most" in refusal(folder)


def test_a_configuration_of_megabytes_is_not_read(folder):
    (folder / CONFIG).write_bytes(b"{" + b" " * (5 * MIB) + b"}")
    assert "which is too long" in refusal(folder)


def test_a_value_that_is_nested_too_deeply_is_not_shown():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    assert shown(deep) == "nested too deeply"


def test_a_name_that_is_there_twice_is_refused(folder):
    header, data = split_file((folder / WEIGHTS).read_bytes())
    words = json.dumps(header)[:-1] + f', "{NORM}": {json.dumps(header[NORM])}}}'
    (folder / WEIGHTS).write_bytes(joined_file(words.encode(), data))
    assert "is there twice" in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        bytes(8),
        b"\xff" * 8,
        b"\xff" * 100,
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        joined_file(b"", b""),
        joined_file(b"[]", b""),
        joined_file(b"{}", b"1"),
        joined_file(DEEP.encode(), b""),
        joined_file(b'{"a":' + DEEP.encode() + b"}", b""),
        joined_file(b'{"a":' + b"9" * 5000 + b"}", b""),
        joined_file(b" " * (5 * MIB), b""),
        joined_file(b'{"\\ud800\\u202e\\n": 7}', b""),
        joined_file(b'{"' + b"a" * (4 * MIB - 100) + b'": 7}', b""),
        joined_file(b'{"a":' + b"[]," * MIB + b"}", b""),
        joined_file(b'{"a":[' + b"[]," * MIB + b"[]]}", b""),
        b"PK\x03\x04" * 100,
        b"GGUF" * 100,
    ],
)
def test_a_file_that_is_none_is_refused(content, folder):
    (folder / WEIGHTS).write_bytes(content)
    assert WEIGHTS in refusal(folder)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0"])
def test_a_file_of_another_length_is_refused(change, folder):
    (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))
    assert "damaged or cut off" in refusal(folder)


def test_weights_without_tensors_are_refused(folder):
    (folder / WEIGHTS).write_bytes(joined_file({}, b""))
    assert "the weights have 0 tensors" in refusal(folder)


def test_a_file_of_terabytes_without_content_is_refused(ours):
    """A sparse file takes no room on the disk; read, it would fill the memory."""
    config = json.loads((ours / CONFIG).read_bytes())
    model = {"d_model": 1 << 16, "d_hid": 1 << 22, "n_layers": 1, "n_head": 64}
    change_json(ours / CONFIG, model=model)
    names = model_without_weights(ModelConfig(**model), config["vocab_size"]).state_dict()
    header = {}
    end = 0
    for name, tensor in names.items():
        if name != "head.weight":
            begin = end
            end += 4 * tensor.numel()
            header[name] = entry("F32", list(tensor.shape), [begin, end])
    (ours / WEIGHTS).write_bytes(joined_file(header, b""))
    size = (ours / WEIGHTS).stat().st_size
    try:
        os.truncate(ours / WEIGHTS, size + end)
    except OSError:
        pytest.skip("no file is so long here")
    assert "of memory are free" in refusal(ours)


def test_weights_that_do_not_fit_the_memory_are_refused(folder, monkeypatch):
    monkeypatch.setattr(
        "chatgot.exchange.stored_tensors.memory_limits", lambda device: [(1000, 1000)]
    )
    assert "of memory are free" in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value, folder):
    header, data = split_file((folder / WEIGHTS).read_bytes())
    place = header[NORM]["data_offsets"][0]
    spoilt = data[:place] + struct.pack("<f", value) + data[place + 4 :]
    (folder / WEIGHTS).write_bytes(joined_file(header, spoilt))
    assert f'"{NORM}" contains NaN or infinity' in refusal(folder)


@pytest.mark.parametrize("name", [NORM, "surplus"])
def test_a_tensor_of_integers_is_refused_by_name(name, folder):
    def change(header):
        value = header.pop(NORM)
        header[name] = value | {"dtype": "I32"}

    change_header(folder, change)
    assert (name if name == NORM else NORM) in refusal(folder)


# --------------------------------------------------------------------------------------------------
# Any damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a whole .safetensors file, as bytes, and a path to write others to."""
    folder = tmp_path_factory.mktemp("whole")
    exported_folder(folder)
    return (folder / WEIGHTS).read_bytes(), folder / "damaged.safetensors"


def read_all(path: Path) -> None:
    """Read all tensors of a file."""
    with open_safetensors(path) as file:
        for name in file.entries:
            file.read(name)


def reason(read: Callable[[Path], object], path: Path) -> str:
    """Return why something is refused; empty: it is read. Any other error is let through."""
    try:
        read(path)
    except ImportRejected as error:
        return str(error)
    return ""


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bits_of_a_header_raise_nothing_else(data, whole):
    content, path = whole
    length = 8 + int.from_bytes(content[:8], "little")
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        bit = data.draw(st.integers(0, 8 * length - 1))
        damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    assert reason(read_all, path).isprintable()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(end=st.integers(0, 5000))
@example(end=0)
@example(end=7)
@example(end=8)
def test_a_file_cut_anywhere_raises_nothing_else(end, whole):
    content, path = whole
    path.write_bytes(content[:end])
    assert reason(read_all, path).isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_a_configuration_raises_nothing_else(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "any_value"
    if not folder.exists():
        folder.mkdir()
        exported_folder(folder)
        (folder / "whole.json").write_bytes((folder / CONFIG).read_bytes())
    whole = json.loads((folder / "whole.json").read_bytes())
    key = data.draw(st.sampled_from(sorted(whole)))
    (folder / CONFIG).write_text(json.dumps(whole | {key: data.draw(json_values)}))
    assert reason(read_hf, folder).isprintable()


# --------------------------------------------------------------------------------------------------
# The index


def split_in_two(folder: Path) -> dict[str, str]:
    """Put the norm into a file of its own; return which file each tensor is in."""
    header, data = split_file((folder / WEIGHTS).read_bytes())
    header.pop("__metadata__", None)
    begin, end = header.pop(NORM)["data_offsets"]
    for value in header.values():
        value["data_offsets"] = [i - 64 if i > begin else i for i in value["data_offsets"]]
    (folder / "a.safetensors").write_bytes(joined_file(header, data[:begin] + data[end:]))
    (folder / "b.safetensors").write_bytes(joined_file({NORM: entry()}, data[begin:end]))
    (folder / WEIGHTS).unlink()
    return {**dict.fromkeys(header, "a.safetensors"), NORM: "b.safetensors"}


def write_index(folder: Path, file_of: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def test_an_index_that_says_the_truth_is_read(folder):
    whole = read_hf(folder).tensors
    write_index(folder, split_in_two(folder))
    split = read_hf(folder).tensors
    assert all(split[name].equal(whole[name]) for name in whole)


@pytest.mark.parametrize(
    "name",
    [
        "../b.safetensors",
        "/etc/b.safetensors",
        "sub/b.safetensors",
        "sub\\b.safetensors",
        "C:b.safetensors",
        ".b.safetensors",
        "b.safetensors\n",
        "b.safetensors\0",
        "b.bin",
        "gone.safetensors",
        "",
        7,
        None,
        ["b.safetensors"],
        "a.safetensors",
    ],
)
def test_an_index_with_another_name_is_refused(name, folder):
    file_of = split_in_two(folder)
    write_index(folder, {**file_of, NORM: name})
    refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda file_of: None,
        lambda file_of: [],
        lambda file_of: {},
        lambda file_of: {**file_of, "more": "a.safetensors"},
        lambda file_of: {name: file for name, file in file_of.items() if name != NORM},
        lambda file_of: {**file_of, "model.embed_tokens.weight": "b.safetensors"},
    ],
)
def test_an_index_that_lies_is_refused(change, folder):
    write_index(folder, change(split_in_two(folder)))
    refusal(folder)


def test_an_index_of_too_many_files_is_refused(folder):
    split_in_two(folder)
    write_index(folder, {str(i): f"{i}.safetensors" for i in range(1000)})
    assert "names 1000 files, at most" in refusal(folder)


def test_a_tensor_in_two_files_is_refused(folder):
    file_of = split_in_two(folder)
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    write_index(folder, file_of)
    assert "is in a.safetensors, too" in refusal(folder)


# --------------------------------------------------------------------------------------------------
# Other files

FILES = (CONFIG, WEIGHTS, "tokenizer.json", "tokenizer_config.json")


def replaced_by_pipe(path: Path) -> None:
    os.mkfifo(path)


def replaced_by_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.write_text("{}")
    path.symlink_to(target)


def replaced_by_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "replace",
    [replaced_by_pipe, replaced_by_link, replaced_by_device, Path.mkdir, Path.touch],
)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_regular_file_is_refused(name, replace, folder):
    subwords(folder)
    (folder / name).unlink()
    replace(folder / name)
    expected = (
        "empty, or not" if replace in (replaced_by_pipe, Path.mkdir, Path.touch) else "a link"
    )
    assert f"{name}: " in refusal(folder)
    assert expected in refusal(folder)


def subwords(folder: Path) -> None:
    """Give a folder the tokenizer of subwords, which has more rows than its weights."""
    (folder / "tokenizer.json").write_text(tiny_tokenizers.tokenizer_json(), encoding="utf-8")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "tokenizer.json"])
def test_a_file_that_is_missing_is_named(name, folder):
    (folder / name).unlink()
    assert name in refusal(folder)


def test_pickles_are_not_read(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert "a pickle, which is not read" in refusal(folder)


def test_code_of_a_folder_does_not_run(folder):
    traps = ("modeling_qwen3.py", "configuration_qwen3.py", "__init__.py", "setup.py", "json.py")
    for name in traps:
        (folder / name).write_text("raise SystemExit('ran')")
    read_hf(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        DEEP.encode(),
        b'{"model": ' + DEEP.encode() + b"}",
        b'{"model": "BPE"}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 1e999}, "merges": []}}',
        b'{"model": {"vocab": {"a": {}, "b": []}}}',
        b"\xff\xfe",
        b"[" + b"0," * (1 << 20) + b"0]",
    ],
)
def test_a_tokenizer_that_is_none_is_refused(content, folder):
    (folder / "tokenizer.json").write_bytes(content)
    assert "tokenizer.json" in refusal(folder)


def test_a_tokenizer_that_takes_much_memory_is_not_parsed(folder):
    (folder / "tokenizer.json").write_text('{"model": [' + "[]," * 11_000_000 + "0]}")
    assert "lists and objects" in refusal(folder)


@pytest.mark.parametrize(
    "part",
    [
        {"pre_tokenizer": "ByteLevel"},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": ["Digits"]}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": ["(a*)*b"]}}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a*)*b"}}},
        {"normalizer": "NFC"},
        {"added_tokens": [{"id": 0, "content": "<|endoftext|>", "special": [1]}]},
    ],
)
def test_a_tokenizer_with_an_odd_part_is_refused(part, folder):
    content = tiny_tokenizers.changed(**part)
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    assert "tokenizer.json" in refusal(folder)


@pytest.mark.parametrize(
    "words",
    [
        {"kind": "subwords"},
        {"kind": "subwords", "tokens": [7] * 50},
        {"tokens": ["<|endoftext|>"]},
        {"tokens": []},
        {"tokens": 7},
        {"tokens": [7]},
        {"tokens": ["<|endoftext|>", "a", "a"]},
    ],
)
def test_a_vocabulary_that_is_none_is_refused(words, ours):
    change_json(ours / "vocabulary.json", **words)
    refusal(ours)


@pytest.mark.parametrize(
    "words",
    [
        {"version": 2},
        {"version": None},
        {"vocab_size": 0},
        {"vocab_size": 1 << 60},
        {"model": None},
        {"model": {"d_model": 1 << 60}},
        {"model": {"n_layers": 10_000}},
        {"model": {"d_hid": 1 << 24}},
        {"model": {"dropout": "\n"}},
    ],
)
def test_a_configuration_of_ours_that_lies_is_refused(words, ours):
    change_json(ours / CONFIG, **words)
    refusal(ours)


def test_a_truth_value_is_no_size_of_a_vocabulary(ours):
    change_json(ours / CONFIG, vocab_size=True)
    assert "vocab_size is true" in refusal(ours)
