"""JSON and JSON Lines come out as conversations or rows, whatever else is in them."""

import json
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from read_texts import PLAY, SPEECHES, reading_of, written

from chatgot.data.preparation.pieces import DocumentStart, Passage, Speech
from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers import json_lines
from chatgot.data.preparation.readers.json_files import JSON_FILES
from chatgot.data.preparation.readers.json_lines import JSON_LINES

MESSAGES = {
    "messages": [
        {"role": "user", "content": "Is the lamp lit?"},
        {"role": "system", "content": "A lighthouse.\n\nNight."},
        {"role": "assistant", "content": [{"type": "text", "text": "It is."}, {"type": "image"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "42"},
        {"role": "user", "name": "Ann", "content": "Good."},
    ]
}
CONVERSATION = [
    DocumentStart(),
    Passage("A lighthouse.\n\nNight."),
    Speech("User", "Is the lamp lit?"),
    Speech("Assistant", "It is."),
    Speech("Ann", "Good."),
]
ROWS = [
    {"line": line, "who": {"name": name}, "scene": number, "tags": ["x"]}
    for number, scene in enumerate(PLAY)
    for name, line in scene
]


def lines_of(*records) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def test_messages_become_a_conversation(tmp_path) -> None:
    source = written(tmp_path, lines_of(MESSAGES, MESSAGES), "tuning.jsonl")
    assert JSON_LINES.certainty(source) > JSON_FILES.certainty(source)
    reading = reading_of(source, JSON_LINES)
    assert reading.pieces == 2 * CONVERSATION
    assert reading.findings.left_out == {
        "parts of messages that are no text": 2,
        "messages without text": 2,
        "messages of tools": 2,
    }


@pytest.mark.parametrize("content", [MESSAGES, [MESSAGES], [MESSAGES["messages"]]])
def test_messages_in_one_file_become_a_conversation(tmp_path, content) -> None:
    source = written(tmp_path, json.dumps(content, indent=1), "chat.json")
    assert JSON_FILES.certainty(source) > JSON_LINES.certainty(source)
    assert reading_of(source, JSON_FILES).pieces == CONVERSATION


def test_an_array_of_messages_is_one_conversation(tmp_path) -> None:
    source = written(tmp_path, json.dumps(MESSAGES["messages"]), "chat.json")
    reading = reading_of(source, JSON_FILES)
    assert reading.speeches == [(p.name, p.text) for p in CONVERSATION if isinstance(p, Speech)]
    assert not reading.titles


@pytest.mark.parametrize(
    ("record", "texts"),
    [
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "ab"),
        ({"prompt": "a", "completion": "b"}, "ab"),
        ({"instruction": "a", "input": "", "output": "b"}, "ab"),
        ({"question": "a", "answer": "b", "id": 7}, "ab"),
        (
            {"prompt": [{"role": "user", "content": "a"}], "completion": [{"content": "b"}]},
            "ab",
        ),
    ],
)
def test_files_for_fine_tuning_become_speeches(tmp_path, record, texts) -> None:
    reading = reading_of(written(tmp_path, lines_of(record, record), "t.jsonl"), JSON_LINES)
    assert [text for _, text in reading.speeches] == [*texts, *texts]
    assert [name for name, _ in reading.speeches][:1] == ["User"]
    assert len(reading.titles) == 2


def test_an_instruction_with_an_input_is_one_speech(tmp_path) -> None:
    record = {"instruction": "Translate.", "input": "Licht", "output": "light"}
    reading = reading_of(written(tmp_path, lines_of(record, record), "t.jsonl"), JSON_LINES)
    assert reading.speeches[:2] == [("User", "Translate.\nLicht"), ("Assistant", "light")]


@pytest.mark.parametrize("is_lines", [True, False])
def test_rows_come_out_line_for_line(tmp_path, is_lines) -> None:
    reader = JSON_LINES if is_lines else JSON_FILES
    content = lines_of(*ROWS) if is_lines else json.dumps(ROWS, indent=2)
    source = written(tmp_path, content, "lines.txt")
    assert 0.5 < reader.certainty(source) <= 0.6
    reading = reading_of(source, reader)
    assert reading.speeches == SPEECHES
    assert reading.titles == ["scene 0", "scene 1"]
    assert "column who.name is taken as the speaker" in reading.said


def test_lists_within_an_object_are_read(tmp_path) -> None:
    scenes = [
        {"title": f"Scene {at}", "lines": [{"speaker": name, "text": text} for name, text in scene]}
        for at, scene in enumerate(PLAY)
    ]
    content = {"show": "The Lamp", "scenes": scenes}
    reading = reading_of(written(tmp_path, json.dumps(content), "play.json"), JSON_FILES)
    assert reading.speeches == SPEECHES
    assert reading.titles == ["Scene 0", "Scene 1"]


def test_texts_are_documents(tmp_path) -> None:
    content = lines_of({"text": "One.\n\nTwo."}, {"text": "Three.", "meta": {"n": 1}})
    reading = reading_of(written(tmp_path, content, "t.jsonl"), JSON_LINES)
    assert reading.texts == ["One.\n\nTwo.", "Three."]
    assert len(reading.titles) == 2


def test_a_wrong_name_of_a_field_lists_the_fields(tmp_path) -> None:
    source = written(tmp_path, lines_of(*ROWS), "lines.jsonl")
    with pytest.raises(UnreadableError, match=r"no column speaker .*line, who.name, scene"):
        reading_of(source, JSON_LINES, ReadingOptions(speaker_column="speaker"))


def test_broken_lines_are_counted_and_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 5_000)
    deep = "[" * 3_000
    huge = json.dumps({"text": "x" * 6_000})
    content = lines_of(MESSAGES) + f"{{broken\n{deep}\n\n{huge}\n" + lines_of(MESSAGES)
    reading = reading_of(written(tmp_path, content, "t.jsonl"), JSON_LINES)
    assert reading.pieces == 2 * CONVERSATION
    assert reading.findings.left_out["broken lines"] == 3
    assert "lines 2, 3, 5" in reading.said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "recursion"),
        ('{"a":' * 100_000, "recursion"),
        ('[{"line": "a"}, {"line": "b"', "cut off"),
        ('[{"line": "a"} {"line": "b"}]', "expected ,"),
    ],
)
def test_odd_json_is_refused_with_its_reason(tmp_path, content, reason) -> None:
    source = written(tmp_path, content, "a.json")
    with pytest.raises(UnreadableError, match=reason):
        reading_of(source, JSON_FILES)


def test_a_large_array_takes_little_memory(tmp_path) -> None:
    row = json.dumps({"speaker": "ANN", "line": "word " * 4_000})
    source = written(tmp_path, f"[{', '.join([row] * 1_000)}]", "a.json")
    assert source.size > 20_000_000
    tracemalloc.start()
    number = sum(1 for _ in JSON_FILES.read(source, ReadingOptions(), Findings()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 1_000
    assert peak < source.size


@pytest.mark.parametrize("text", ["", "Once upon a time.", "{braces} in prose", "[1] A note.\n[2]"])
def test_prose_is_no_json(tmp_path, text) -> None:
    source = written(tmp_path, text, "a.txt")
    assert JSON_LINES.certainty(source) == JSON_FILES.certainty(source) == 0


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.just("x\ud800"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "role", "content", "text", "prompt", "name", "from", "output"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(VALUES, max_size=4), st.integers(0, 200), st.booleans())
def test_any_json_is_read_or_refused(tmp_path, values, cut, is_lines) -> None:
    content = lines_of(*values) if is_lines else json.dumps(values)
    source = written(tmp_path, content[: len(content) - cut // 10] or " ", "a.json")
    if source.encoding is None:
        return
    for reader in (JSON_LINES, JSON_FILES):
        assert 0 <= reader.certainty(source) <= 1
        pieces = []
        with suppress(UnreadableError):
            pieces = reading_of(source, reader).pieces
        assert all(isinstance(p, DocumentStart) or p.text.strip("\n") for p in pieces)
