"""Prompts become continuations: as text, piece by piece, or as JSON lines."""

import json

import pytest
from scripted_engine import VOCABULARY, ScriptedEngine

from chatgot.chat.continuing import ask_for, read_prompts, written_as_json, written_as_text
from chatgot.errors import ConfigError
from chatgot.sampling.controls import Controls


def test_text_comes_piece_by_piece_after_its_prompt():
    engine = ScriptedEngine(lambda request: " be")
    asked = ask_for(engine, VOCABULARY, ["To"], 1, Controls())
    pieces = [piece for piece in written_as_text(engine, asked) if piece]
    assert pieces == ["To", " ", "b", "e", "\n"]


def test_texts_come_in_order_with_a_blank_line_between():
    engine = ScriptedEngine(lambda request: "long one" if request.controls.seed else "\n")
    asked = ask_for(engine, VOCABULARY, ["A", "B"], 2, Controls())
    assert "".join(written_as_text(engine, asked)) == "A\n\nAlong one\n\nB\n\nBlong one\n"


def test_json_line_has_what_repeats_the_text():
    engine = ScriptedEngine(lambda request: f"x{request.controls.seed}")
    asked = ask_for(engine, VOCABULARY, ["To\n"], 3, Controls(seed=7))
    rows = [json.loads(line) for line in written_as_json(engine, asked)]
    assert rows[1] == {
        "prompt": "To\n",
        "text": "x8",
        "logprob": -1.0,
        "tokens": 2,
        "seed": 8,
        "finish_reason": "stop",
    }
    assert [row["seed"] for row in rows] == [7, 8, 9]
    assert {request.choice for request in engine.requests} == {0}


def test_json_line_holds_no_control_character():
    engine = ScriptedEngine(lambda request: "\x1b[2J")
    asked = ask_for(engine, VOCABULARY, ["A"], 1, Controls())
    (line,) = written_as_json(engine, asked)
    assert json.loads(line)["text"] == "\x1b[2J"
    assert line.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.txt", b"one\n\ntwo \r\n", ["one", "two "]),
        ("a.jsonl", b'"KING:\\n"\n{"prompt": "Why", "n": 1}\n', ["KING:\n", "Why"]),
        ("stdin", b"\xef\xbb\xbfone", ["one"]),
    ],
)
def test_prompts_are_one_a_line(name, content, prompts):
    assert read_prompts(name, content) == prompts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\n\n", "no prompt in it"),
        ("a.txt", b"\xff", "UTF-8"),
        ("a.jsonl", b"one\n", "expected a JSON string"),
        ("a.jsonl", b'{"text": "one"}\n', "expected a JSON string"),
        ("a.jsonl", b'{"prompt": 1}\n', "expected a JSON string"),
    ],
)
def test_file_without_prompts_is_refused(name, content, words):
    with pytest.raises(ConfigError, match=words):
        read_prompts(name, content)


def test_a_hundred_thousand_completions_are_not_asked_for_at_once():
    engine = ScriptedEngine(lambda request: "x")
    lines = written_as_json(engine, ask_for(engine, VOCABULARY, ["A"], 100_000, Controls()))
    seeds = [json.loads(next(lines))["seed"] for _ in range(100)]
    assert seeds == list(range(100))
    assert len(engine.requests) < 200
