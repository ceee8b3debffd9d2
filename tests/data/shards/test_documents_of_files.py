"""Documents of plain texts and JSON Lines, packed or not, from anywhere, a piece at a time."""

import gzip
import json

import fsspec
import pytest

from chatgot.data.shards import documents as module
from chatgot.data.shards.documents import documents, sample, text_files
from chatgot.errors import ConfigError


def read(*inputs: object) -> list[str]:
    files = text_files([str(given) for given in inputs])
    return [document for file in files for document in documents(file, lambda _: None)]


def test_lines_that_end_a_text_separate_documents(tmp_path):
    path = tmp_path / "a.txt"
    end = "<|endoftext|>"
    text = f"\ufeff\n one {end}\ntwo\r\n\n{end}\n \n{end}\n{end}\nthree"
    path.write_bytes(text.encode())
    assert read(path) == [" one <|endoftext|>\ntwo", "three"]


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_documents_do_not_depend_on_where_chunks_end(tmp_path, monkeypatch, texts, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    path = tmp_path / "a.txt"
    path.write_text("\n<|endoftext|>\n".join(texts[:4]), encoding="utf-8")
    assert read(path) == [text.strip("\n") for text in texts[:4]]


def test_each_line_of_json_is_a_document(tmp_path):
    path = tmp_path / "a.JSONL"
    lines = [{"text": "a\r\nb"}, {"id": 3, "text": "é\ud800"}, {"text": "x\n<|endoftext|>\ny"}]
    path.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read(path) == ["a\nb", "é\ufffd", "x", "y"]


def test_packed_files_are_read_as_they_were_before(tmp_path, jsonl, texts):
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(jsonl.read_bytes()))
    plain = tmp_path / "c.txt.gz"
    plain.write_bytes(gzip.compress("\n<|endoftext|>\n".join(texts).encode()))
    assert read(packed) == read(jsonl) == read(plain)


def test_folders_patterns_and_addresses_name_files_in_order(tmp_path):
    storage = fsspec.filesystem("memory")
    for name in ("b.txt", "a.txt", ".hidden", "index.json", "train-1.tokens", "deep/c.txt"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        storage.pipe_file(f"/documents/{name}", name.encode())
    assert read(tmp_path / "folder") == ["a.txt", "b.txt", "deep/c.txt"]
    assert read(tmp_path / "folder" / "*.txt") == ["a.txt", "b.txt"]
    assert read("memory://documents") == ["a.txt", "b.txt", "deep/c.txt"]
    assert read("memory://documents/?.txt", tmp_path / "folder/b.txt") == [
        "a.txt",
        "b.txt",
        "b.txt",
    ]


def test_a_long_document_is_cut_at_ends_of_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 10)
    monkeypatch.setattr(module, "CHUNK", 7)
    path = tmp_path / "a.txt"
    path.write_text("12345\n1234\n123456789012345\nend")
    assert read(path) == ["12345", "1234", "1234567890", "12345\nend"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"caf\xe9 au lait", "0xe9, expected UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2: no JSON"),
        ("a.jsonl", b'{"body": "a"}', "line 1: found body"),
        ("a.jsonl", b'["text"]', "line 1: found no object"),
        ("a.jsonl", b'{"text": 3}', "line 1: found text"),
        ("a.txt.gz", gzip.compress(b"a" * 1000)[:-9], "damaged gzip"),
        ("a.txt.gz", b"no gzip", "damaged gzip"),
    ],
)
def test_a_damaged_file_is_refused_by_name_in_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert "\n" not in message


def test_what_is_not_there_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for given in ("missing.txt", "empty", "*.txt"):
        with pytest.raises(ConfigError) as caught:
            text_files([str(tmp_path / given)])
        assert "\n" not in str(caught.value)
        assert given in str(caught.value)
    for given, words in (("s9://a/b", "Protocol not known"), ("abfs://a/b", "pip install")):
        with pytest.raises(ConfigError, match=words):
            text_files([given])


def test_a_sample_comes_from_all_over_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECES", 10)
    plain = tmp_path / "a.txt"
    plain.write_text("".join(f"line {n}\n" for n in range(10_000)))
    lines = tmp_path / "b.jsonl"
    lines.write_text("".join(json.dumps({"text": f"word{n}"}) + "\n" for n in range(10_000)))
    pieces = list(sample(text_files([str(plain), str(lines)]), 2_000))
    assert len(pieces) == 10
    assert sum(map(len, pieces)) < 2_500
    assert "line 0\n" in pieces[0]
    assert "line 9" in pieces[3]
    assert "text" not in pieces[-1]
    assert "word8" in pieces[-1]


def test_a_small_text_is_its_own_sample(jsonl, texts):
    assert list(sample(text_files([str(jsonl)]), 10**6)) == [text.strip("\n") for text in texts]
