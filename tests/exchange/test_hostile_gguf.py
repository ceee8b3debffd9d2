"""GGUF files that lie: each is refused in one line, at once, and with little memory."""

import os
import struct
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import parts
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Stored
from gguf_models import loaded, write
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_gguf import ARRAY, BOOL, F32, F64, I32, STRING, U32, U64, RawGguf, RawTensor, text

import chatgot.exchange.gguf_header
from chatgot.data.subwords import Subwords
from chatgot.errors import ImportRejected
from chatgot.exchange.byte_level_bpe import letters_of_bytes
from chatgot.exchange.from_gguf import read_gguf
from chatgot.exchange.gguf_header import open_gguf
from chatgot.exchange.to_gguf import FILE

MOST_MEMORY = 50 << 20  # bytes that reading a lie may take
LONGEST = 2.0  # seconds of CPU; counting memory makes it several times slower
HUGE = (1 << 64) - 1
TEXT_KEY = "general.name"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Return the file of a small model with characters."""
    folder = tmp_path_factory.mktemp("small")
    model = loaded(folder, "llama")
    return write(model, folder)[0] / FILE


@pytest.fixture
def raw(small) -> RawGguf:
    return RawGguf.of(small)


@contextmanager
def little_is_used():
    """Check that a block takes little time and memory."""
    tracemalloc.start()
    began = time.process_time()
    try:
        with parts.at_once():
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < LONGEST
    assert peak < MOST_MEMORY


def refused(path: Path, reason: str = ":") -> None:
    """Check that reading a file ends in one line, at once."""
    with little_is_used(), pytest.raises(ImportRejected, match=reason) as caught:
        read_gguf(path)
    message = str(caught.value).removeprefix(str(path))
    assert message.isprintable()
    assert len(message) < 300


# --------------------------------------------------------------------------------------------------
# No file, or no GGUF


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "fifo.gguf")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    (tmp_path / "nowhere.gguf").symlink_to(tmp_path / "missing.gguf")
    (tmp_path / "to_fifo.gguf").symlink_to(tmp_path / "fifo.gguf")
    for name in ("folder.gguf", "fifo.gguf", "to_fifo.gguf"):
        refused(tmp_path / name, "not a regular file")
    for name in ("missing.gguf", "loop.gguf", "nowhere.gguf", "nul\0.gguf"):
        refused(tmp_path / name, "cannot be opened")
    refused(tmp_path / "empty.gguf", "no whole GGUF file")
    refused(Path("/dev/zero"), "not a regular file")


def test_no_descriptor_stays_open(tmp_path):
    (tmp_path / "empty.gguf").touch()
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    for path in (tmp_path, tmp_path / "empty.gguf", tmp_path / "missing.gguf"):
        refused(path)
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read_is_refused(small, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small.read_bytes())
    path.chmod(0)
    refused(path, "cannot be opened")


def test_link_to_a_file_is_read(small, tmp_path):
    link = tmp_path / "link.gguf"
    link.symlink_to(small)
    assert read_gguf(link).tokens == read_gguf(small).tokens


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"G", "ends in the middle"),
        (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(100), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "little endian"),
        (b"GGUF" + struct.pack("<I", 4) + bytes(100), "version 4"),
        (b"GGUF" + struct.pack("<I", 3) + b"\xff" * 100, "tensors, at most"),
        (b"GGUF" + struct.pack("<I", 3) + bytes(100), "architecture is None"),
    ],
)
def test_other_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    refused(path, reason)


# --------------------------------------------------------------------------------------------------
# Counts and lengths

U32_ONE = struct.pack("<II", U32, 1)
HEADS = {
    "a billion keys": (struct.pack("<QQ", 0, 10**9), "1000000000 keys"),
    "too many keys": (struct.pack("<QQ", 0, HUGE), "keys, at most"),
    "a billion tensors": (struct.pack("<QQ", 10**9, 0), "1000000000 tensors"),
    "keys that are not there": (struct.pack("<QQ", 0, 9999), "middle of its header"),
    "tensors that are not there": (struct.pack("<QQ", 9999, 0), "middle of its header"),
    "a key longer than the file": (struct.pack("<QQQ", 0, 1, 1000), "middle of its header"),
    "a key of any length": (struct.pack("<QQQ", 0, 1, HUGE), "bytes of a key"),
    "a key that is no UTF-8": (struct.pack("<QQ", 0, 1) + text(b"\xff\xfe") + U32_ONE, "no UTF-8"),
    "half a surrogate": (
        struct.pack("<QQ", 0, 1) + text(b"\xed\xa0\x80") + U32_ONE,
        "no UTF-8",
    ),
    "an unknown type": (struct.pack("<QQ", 0, 1) + text("a\nb") + struct.pack("<I", 13), "type"),
    "a string longer than the file": (
        struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IQ", STRING, 100_000),
        "middle of its header",
    ),
    "a string of any length": (
        struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IQ", STRING, HUGE),
        "bytes of 'a'",
    ),
    "an array of arrays": (
        struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1),
        "array of arrays",
    ),
    "an array of a billion": (
        struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", ARRAY, U32, 10**9),
        "1000000000 items",
    ),
    "an array longer than the file": (
        struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", ARRAY, F64, 2_000_000),
        "middle of its header",
    ),
    "an array of an unknown type": (
        struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", ARRAY, 99, 1),
        "unknown type",
    ),
    "texts longer than the file": (
        struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", ARRAY, STRING, 2_000_000),
        "middle of its header",
    ),
}


@pytest.mark.parametrize("case", HEADS)
def test_counts_and_lengths_that_lie_are_refused(tmp_path, case):
    head, reason = HEADS[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + head)
    refused(path, reason)


def test_lengths_that_lie_in_a_huge_file_are_refused(tmp_path):
    """The file says that it has a terabyte of zeros; it takes no room."""
    path = tmp_path / "model.gguf"
    for case in ("an array of a billion", "a string of any length"):
        path.write_bytes(b"GGUF" + struct.pack("<I", 3) + HEADS[case][0])
        os.truncate(path, 1 << 40)
        refused(path, HEADS[case][1])
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 9999))
    os.truncate(path, 1 << 40)
    refused(path, "the key '' comes twice")


def test_all_arrays_together_have_a_limit(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(chatgot.exchange.gguf_header, "MOST_ITEMS", 1000)
    raw.set("a", ARRAY, (U32, [1] * 600))
    read_gguf(raw.write(tmp_path / "model.gguf"))
    raw.set("b", ARRAY, (U32, [1] * 600))
    refused(raw.write(tmp_path / "model.gguf"), "more than 1000 items")


def test_header_has_a_limit(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(chatgot.exchange.gguf_header, "LARGEST_HEADER", 1 << 20)
    raw.set("a", STRING, "x" * (600 << 10))
    read_gguf(raw.write(tmp_path / "model.gguf"))
    raw.set("b", STRING, "x" * (600 << 10))
    refused(raw.write(tmp_path / "model.gguf"), "larger than 1 MiB")


def test_what_comes_twice_is_refused(raw, small, tmp_path):
    raw.keys.append(raw.keys[0])
    refused(raw.write(tmp_path / "model.gguf"), f"the key {raw.keys[0][0]!r} comes twice")
    other = RawGguf.of(small)
    other.tensors.append(other.tensors[0])
    refused(other.write(tmp_path / "model.gguf"), "the tensor 'token_embd.weight' comes twice")


@pytest.mark.parametrize("value", [b"\xff", b"a\xed\xbf\xbf"])
def test_values_that_are_no_utf_8_are_refused(raw, tmp_path, value):
    raw.set(TEXT_KEY, STRING, value)
    refused(raw.write(tmp_path / "model.gguf"), "no UTF-8")
    raw.set(TEXT_KEY, ARRAY, (STRING, ["a", value]))
    refused(raw.write(tmp_path / "model.gguf"), "no UTF-8")
    raw.remove(TEXT_KEY)
    raw.tensors.append((value, RawTensor.of([1.0])))
    refused(raw.write(tmp_path / "model.gguf"), "no UTF-8")


# --------------------------------------------------------------------------------------------------
# Tensors

ALIGNMENTS = [
    (U32, 0),
    (U32, 3),
    (U64, 1 << 40),
    (U64, HUGE),
    (I32, -32),
    (BOOL, True),
    (STRING, "32\n"),
    (F32, 32.0),
    (ARRAY, (U32, [32])),
]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_odd_alignment_is_refused(raw, tmp_path, alignment):
    raw.set("general.alignment", *alignment)
    refused(raw.write(tmp_path / "model.gguf"), "general.alignment is")


SIZES = {
    "an overflow": [1 << 32, 1 << 32],
    "an overflow to its own size": [1 << 33, 1 << 31, 2, 1],
    "the largest numbers": [HUGE] * 4,
    "no rows": [16, 0],
    "no columns": [0, 16],
    "five dimensions": [1] * 5,
    "no dimension": [],
    "more dimensions than the file": [1] * 3000,
    "a terabyte": [1 << 20, 1 << 18],
}


@pytest.mark.parametrize("case", SIZES)
def test_shapes_that_lie_are_refused(raw, tmp_path, case):
    raw.tensor("token_embd.weight").sizes = SIZES[case]
    refused(raw.write(tmp_path / "model.gguf"), "dimensions|has the shape|reaches beyond")


@pytest.mark.parametrize("begin", [1, 16, 1 << 40, HUGE, HUGE - 31, (1 << 63) - 32])
def test_tensor_that_begins_elsewhere_is_refused(raw, tmp_path, begin):
    raw.tensor("output_norm.weight").begin = begin
    refused(raw.write(tmp_path / "model.gguf"), "beyond|where a tensor can")


def test_tensors_that_share_bytes_are_refused(raw, tmp_path):
    for begin in (0, 32):
        raw.tensors[-1][1].begin = begin
        refused(raw.write(tmp_path / "model.gguf"), "where a tensor can")


def test_many_tensors_of_the_same_bytes_are_refused(tmp_path):
    """Ten thousand embeddings of one place would fill the memory."""
    file = RawGguf()
    tensor = RawTensor([1 << 20], 0, b"", begin=0)
    file.tensors = [(f"t{i}", tensor) for i in range(10_000)]
    path = file.write(tmp_path / "model.gguf")
    os.truncate(path, 1 << 24)
    refused(path, "where a tensor can")


@pytest.mark.parametrize("kind", [4, 5, 31, 99, (1 << 32) - 1])
def test_unknown_way_to_store_is_refused(raw, tmp_path, kind):
    raw.tensor("token_embd.weight").kind = kind
    refused(raw.write(tmp_path / "model.gguf"), "stored in an unknown way")


def test_rows_that_blocks_cannot_divide_are_refused(raw, tmp_path):
    raw.tensor("output_norm.weight").kind = int(Stored.Q4_K)
    refused(raw.write(tmp_path / "model.gguf"), "no multiple of 256")


@pytest.mark.parametrize("byte", [0x00, 0x3C, 0xFF])
def test_any_bytes_of_any_kind_are_read_or_refused(tmp_path, byte):
    kinds = list(Stored)
    sizes = [GGML_QUANT_SIZES[kind] for kind in kinds]
    file = RawGguf()
    file.tensors = [
        (kind.name, RawTensor([block * 2, 3], int(kind), bytes([byte]) * 6 * n_bytes))
        for kind, (block, n_bytes) in zip(kinds, sizes, strict=True)
    ]
    read = 0
    with little_is_used(), open_gguf(file.write(tmp_path / "model.gguf")) as opened:
        for kind, (block, _) in zip(kinds, sizes, strict=True):
            try:
                tensor = opened.tensor(kind.name)
            except ImportRejected as error:
                assert "\n" not in str(error)  # noqa: PT017
                continue
            assert tensor.shape == (3, block * 2)
            assert bool(tensor.isfinite().all())
            read += 1
    assert read or byte


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(raw, tmp_path, value):
    tensor = raw.tensor("blk.1.ffn_up.weight")
    tensor.data = tensor.data[:-4] + struct.pack("<f", value)
    refused(raw.write(tmp_path / "model.gguf"), "'blk.1.ffn_up.weight' contains NaN or infinity")


@pytest.mark.parametrize("cut", [1, 32, 1000])
def test_file_that_ends_early_is_refused(small, tmp_path, cut):
    path = tmp_path / "model.gguf"
    path.write_bytes(small.read_bytes()[:-cut])
    refused(path, "reaches beyond its end")


def test_file_that_becomes_shorter_while_it_is_read_is_refused(small, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small.read_bytes())
    with open_gguf(path) as opened:
        os.truncate(path, 100)
        last = max(opened.places, key=lambda name: opened.places[name].begin)
        with pytest.raises(ImportRejected, match="became shorter"):
            opened.tensor(last)


# --------------------------------------------------------------------------------------------------
# Values of the keys that are read

NUMBER_KEYS = [
    "llama.context_length",
    "llama.embedding_length",
    "llama.block_count",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.rope.dimension_count",
    "llama.vocab_size",
    "llama.attention.layer_norm_rms_epsilon",
]
NO_NUMBERS = {
    "text": (STRING, "8\n"),
    "long text": (STRING, "8" * 500_000),
    "truth": (BOOL, True),
    "list": (ARRAY, (U32, [8])),
    "long list": (ARRAY, (U32, [8] * 1000)),
    "negative": (I32, -8),
    "zero": (U32, 0),
    "huge": (U64, HUGE),
    "NaN": (F64, np.nan),
    "infinity": (F32, np.inf),
    "above fp32": (F64, 1e300),
    "below fp32": (F64, 1e-300),
}


@pytest.mark.parametrize("case", NO_NUMBERS)
def test_value_that_is_no_size_is_refused(small, tmp_path, case):
    for key in NUMBER_KEYS:
        file = RawGguf.of(small)
        file.set(key, *NO_NUMBERS[case])
        refused(file.write(tmp_path / "model.gguf"))


def test_base_of_rotary_positions_that_is_none_is_refused(small, tmp_path):
    for case in NO_NUMBERS.keys() - {"huge"}:  # a huge one is one
        file = RawGguf.of(small)
        file.set("llama.rope.freq_base", *NO_NUMBERS[case])
        refused(file.write(tmp_path / "model.gguf"))


TEXT_KEYS = [
    "general.architecture",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.add_bos_token",
]


@pytest.mark.parametrize("case", NO_NUMBERS)
def test_value_that_is_no_text_is_refused(small, tmp_path, case):
    for key in TEXT_KEYS:
        file = RawGguf.of(small)
        file.set(key, *NO_NUMBERS[case])
        refused(file.write(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    "numbers",
    [
        {"embedding_length": 1 << 20, "attention.head_count": 1},
        {"feed_forward_length": 1 << 24},
        {"block_count": 10_000},
        {"attention.head_count": 1 << 14, "attention.head_count_kv": 1 << 14},
        {"attention.key_length": 1 << 14},
        {"context_length": 1 << 20, "embedding_length": 1 << 20, "attention.head_count": 1},
    ],
)
def test_large_numbers_allocate_nothing(raw, tmp_path, numbers):
    """Shapes are compared first."""
    for key, value in numbers.items():
        raw.set(f"llama.{key}", U32, value)
    refused(raw.write(tmp_path / "model.gguf"))


def test_weights_that_do_not_fit_the_memory_are_refused(small, monkeypatch):
    """A file can be far longer than the place that it takes on the disk."""
    monkeypatch.setattr(
        "chatgot.exchange.stored_tensors.memory_limits", lambda device: [(1000, 1000)]
    )
    refused(small, "of memory are free")


# --------------------------------------------------------------------------------------------------
# Tokens


def test_no_tokens_are_refused(raw, tmp_path):
    raw.remove("llama.vocab_size")
    raw.set("tokenizer.ggml.tokens", ARRAY, (STRING, []))
    refused(raw.write(tmp_path / "model.gguf"), "token_embd.weight has the shape")


def test_more_tokens_than_rows_are_refused_at_once(raw, tmp_path, monkeypatch):
    """Before they are read as a tokenizer."""
    raw.remove("llama.vocab_size")
    raw.set("tokenizer.ggml.tokens", ARRAY, (STRING, [str(i) for i in range(20_000)]))
    monkeypatch.setattr(Subwords, "from_json", None)
    refused(raw.write(tmp_path / "model.gguf"), "token_embd.weight has the shape")


@pytest.fixture(scope="module")
def with_merges(tmp_path_factory) -> Path:
    """Return the file of a small model with all bytes and a few merges."""
    folder = tmp_path_factory.mktemp("merges")
    file = RawGguf.of(write(loaded(folder, "llama"), folder)[0] / FILE)
    letters = letters_of_bytes()
    names = ["<|endoftext|>", *letters, "ab", "abc", "bc"]
    file.set("tokenizer.ggml.tokens", ARRAY, (STRING, names))
    file.set("tokenizer.ggml.token_type", ARRAY, (I32, [3, *[1] * (len(names) - 1)]))
    file.set("tokenizer.ggml.merges", ARRAY, (STRING, ["a b", "ab c", "b c"]))
    file.remove("llama.vocab_size")
    embedding = file.tensor("token_embd.weight")
    embedding.sizes[1] = len(names)
    embedding.data = bytes(4 * embedding.sizes[0] * len(names))
    path = file.write(folder / "merges.gguf")
    assert len(read_gguf(path).vocabulary.encode("abc")) == 1
    return path


NAMES = 257  # the end of a text and the bytes
MERGES = {
    "of a token that is not there": ["a b", "b zz"],
    "that makes no token": ["a b", "c a"],
    "of nothing": ["a b", " "],
    "of three": ["a b c"],
    "without a space": ["ab"],
    "of two spaces": ["a  b"],
    "of an empty text": [""],
    "in a cycle": ["ab c", "abc ab"],
    "of a line feed": ["a\nb"],
}


@pytest.mark.parametrize("case", MERGES)
def test_merges_that_make_no_token_are_refused(with_merges, tmp_path, case):
    file = RawGguf.of(with_merges)
    file.set("tokenizer.ggml.merges", ARRAY, (STRING, MERGES[case]))
    refused(file.write(tmp_path / "model.gguf"), "makes no token")


@pytest.mark.parametrize("name", ["a", "ab", "", "<|endoftext|>"])
def test_token_twice_is_refused(with_merges, tmp_path, name):
    file = RawGguf.of(with_merges)
    names = list(file.get("tokenizer.ggml.tokens"))
    names[-1] = name
    file.set("tokenizer.ggml.tokens", ARRAY, (STRING, names))
    refused(file.write(tmp_path / "model.gguf"), "twice|two ids|expected the id|makes no token")


def test_merges_in_any_order_end(with_merges, tmp_path):
    file = RawGguf.of(with_merges)
    file.set("tokenizer.ggml.merges", ARRAY, (STRING, ["ab c", "b c", "a b", "a b"]))
    vocabulary = read_gguf(file.write(tmp_path / "model.gguf")).vocabulary
    assert vocabulary.decode(vocabulary.encode("abc" * 1000)) == "abc" * 1000


def test_control_token_of_ordinary_text_is_refused(with_merges, tmp_path):
    file = RawGguf.of(with_merges)
    types = list(file.get("tokenizer.ggml.token_type"))
    types[NAMES] = 3
    file.set("tokenizer.ggml.token_type", ARRAY, (I32, types))
    refused(file.write(tmp_path / "model.gguf"), "makes no token|ordinary text")


# --------------------------------------------------------------------------------------------------
# Bit flips and ends


def read_or_refuse(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with parts.at_once():
        try:
            read_gguf(path)
        except ImportRejected as error:
            assert "\n" not in str(error).removeprefix(str(path))  # noqa: PT017


@pytest.mark.parametrize("kind", ["characters", "subwords"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_flipped_bits_are_read_or_refused(small, with_merges, tmp_path_factory, kind, data):
    path = small if kind == "characters" else with_merges
    content = bytearray(path.read_bytes())
    header = len(RawGguf.of(path).header())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with little_is_used():
        read_or_refuse(bytes(content), tmp_path_factory.getbasetemp() / f"flipped_{kind}.gguf")


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_file_cut_anywhere_is_refused(small, tmp_path_factory, data):
    content = small.read_bytes()
    header = len(RawGguf.of(small).header())
    places = st.integers(0, header) | st.integers(0, len(content) - 32)
    path = tmp_path_factory.getbasetemp() / "cut.gguf"
    path.write_bytes(content[: data.draw(places)])
    refused(path)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_bytes_put_in_or_taken_out_are_read_or_refused(small, tmp_path_factory, data):
    content = small.read_bytes()
    header = len(RawGguf.of(small).header())
    place = data.draw(st.integers(0, header))
    more = data.draw(st.binary(max_size=16))
    less = data.draw(st.integers(0, 16))
    with little_is_used():
        read_or_refuse(
            content[:place] + more + content[place + less :],
            tmp_path_factory.getbasetemp() / "changed.gguf",
        )
