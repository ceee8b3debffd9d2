"""A model with subwords, asked through the API: pieces, bytes and offsets of any token."""

import codecs
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import parts
import pytest
import served
from tiny_tokenizers import SPECIALS, SPEECHES, subwords

from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.data.subwords import Subwords
from chatgot.data.token_cache import Tokens
from chatgot.run.assembly import assemble

VOCABULARY = subwords("qwen2")
SPECIAL = VOCABULARY.tokens.index("<|im_end|>")
TORN = VOCABULARY.encode("🀄")  # one character of several tokens


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[served.Server]:
    with serving(tmp_path_factory.mktemp("subwords"), VOCABULARY) as running:
        yield running


def serving(folder: Path, vocabulary: Subwords) -> served.Server:
    """Return a server of a model with these subwords, not started yet."""
    config = parts.config(model={"max_seq_length": 64, "init_range": 0.5})
    ids = np.array(vocabulary.encode(SPEECHES * 20), np.uint16)
    tokens = Tokens(ids, vocabulary, sha256(ids.tobytes()).hexdigest(), "utf-8")
    run = assemble(config, tokens, parts.CPU, None)
    run.state.run_id = served.RUN_ID
    (folder / "checkpoints").mkdir()
    save_checkpoint(folder / "checkpoints" / f"{served.RUN_ID}_step_0.pt", run.checkpoint())
    return served.Server(folder)


def test_tokenize_and_detokenize_are_each_others_inverse(server):
    text = "KING:\nIt's Grüße, 世界 🎭 🀄 <|im_end|>"
    answer = server.post("/tokenize", text=text).json()
    assert answer["tokens"] == VOCABULARY.encode(text)
    assert answer["count"] == len(answer["pieces"]) == len(answer["tokens"])
    assert any(piece.startswith("bytes:\\x") for piece in answer["pieces"])
    assert "replaced" not in answer
    assert server.post("/detokenize", tokens=answer["tokens"]).json()["text"] == text
    named = server.post("/tokenize", text="The king").json()["pieces"]
    assert "".join(named) == "The king"


def test_an_id_without_a_token_is_refused(server):
    for path, key in (("/detokenize", "tokens"), ("/v1/completions", "prompt")):
        answer = server.post(path, **{key: [len(VOCABULARY)]})
        assert answer.status_code == 400
        assert f"expected 0 to {len(VOCABULARY) - 1}" in answer.json()["error"]["message"]


def test_the_bytes_of_the_tokens_are_those_of_the_answer(server):
    """At a high temperature most tokens are bytes of torn characters."""
    for seed in range(3):
        body = {"temperature": 100.0, "max_tokens": 60, "seed": seed, "logprobs": True}
        bias = {str(VOCABULARY.end_of_text_id): -100}
        messages = [{"role": "user", "content": "Who's there?"}]
        answer = server.post(
            "/v1/chat/completions", messages=messages, top_logprobs=3, logit_bias=bias, **body
        ).json()
        (choice,) = answer["choices"]
        content = choice["logprobs"]["content"]
        special = {VOCABULARY.tokens[i].encode() for i in range(3)}
        joined = b"".join(
            bytes(token["bytes"]) for token in content if bytes(token["bytes"]) not in special
        )
        text = choice["message"]["content"]
        assert joined.decode(errors="replace").startswith(text.rstrip("\ufffd"))
        assert all(len(token["top_logprobs"]) == 3 for token in content)


def scripted(server, ids: list[int], n: int = 1, **body):
    """Return the choice of a completion that begins with these ids: a prompt that is scored."""
    answer = server.complete(ids, n, echo=True, logprobs=1, **body)
    return answer["choices"][0]


def test_offsets_of_a_torn_character_are_those_of_the_whole(server):
    ids = [*VOCABULARY.encode("ab"), *TORN, *VOCABULARY.encode("c")]
    choice = scripted(server, ids)
    logprobs = choice["logprobs"]
    assert choice["text"].startswith("ab🀄c")
    before = len(VOCABULARY.encode("ab"))
    after = before + len(TORN)
    assert logprobs["text_offset"][before:after] == [2] * len(TORN)
    assert logprobs["text_offset"][after] == 3
    assert all(token.startswith("bytes:") for token in logprobs["tokens"][before:after])


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_has_the_tokens_and_offsets_of_the_whole_answer(server, seed):
    """A character of several tokens comes with all of them, however the stream is cut."""
    body = {
        "prompt": "KING:\n",
        "max_tokens": 80,
        "seed": seed,
        "temperature": 100.0,
        "logprobs": 1,
        "logit_bias": {str(VOCABULARY.end_of_text_id): -100},
    }
    whole = server.post("/v1/completions", **body).json()["choices"][0]
    text = ""
    tokens: list[str] = []
    offsets: list[int] = []
    with server.client.stream("POST", "/v1/completions", json={**body, "stream": True}) as events:
        # not iter_lines, which ends lines at U+0085 too
        for line in "".join(events.iter_text()).split("\n"):
            if line.startswith("data: {"):
                (choice,) = event_of(line)["choices"]
                text += choice["text"]
                if choice["logprobs"]:
                    tokens += choice["logprobs"]["tokens"]
                    offsets += choice["logprobs"]["text_offset"]
    assert (text, tokens, offsets) == (
        whole["text"],
        whole["logprobs"]["tokens"],
        whole["logprobs"]["text_offset"],
    )
    assert len(tokens) == 80


def test_a_part_of_a_character_waits_for_the_character(server):
    """In no event of a stream is there a token whose text is still to come."""
    bias = {str(VOCABULARY.tokens.index(name)): -100 for name in SPECIALS}
    body = {"temperature": 100.0, "max_tokens": 80, "seed": 1, "logprobs": True}
    messages = [{"role": "user", "content": "Who's there?"}]
    asked = {**body, "messages": messages, "logit_bias": bias, "stream": True}
    utf_8 = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    decoded = 0
    torn = 0
    with server.client.stream("POST", "/v1/chat/completions", json=asked) as events:
        for line in "".join(events.iter_text()).split("\n"):
            if not line.startswith("data: {"):
                continue
            (choice,) = event_of(line)["choices"]
            text += choice["delta"].get("content", "")
            for token in (choice.get("logprobs") or {"content": []})["content"]:
                decoded += len(utf_8.decode(bytes(token["bytes"])))
            is_torn = utf_8.getstate()[0] != b""
            torn += is_torn
            assert decoded + is_torn <= len(text)
    assert torn


def event_of(line: str) -> dict:
    return json.loads(line.removeprefix("data: "))


def test_the_model_chooses_who_answers_and_ends_before_the_next_speaker(server):
    messages = [{"role": "user", "name": "KING", "content": "Who speaks?"}]
    answer = server.post(
        "/v1/chat/completions", messages=messages, character="auto", max_tokens=5, seed=1
    ).json()
    assert answer["choices"][0]["message"]["name"] in ("FOOL", "QUEEN")


def test_the_list_of_models_says_what_the_tokens_are(server):
    about = server.get("/v1/models").json()["data"][0]["chatgot"]
    assert (about["tokens"], about["vocabulary_size"]) == ("subwords", len(VOCABULARY))


def test_a_special_token_has_its_name_and_shows_nothing(server):
    choice = scripted(server, [*VOCABULARY.encode("ab"), SPECIAL, *VOCABULARY.encode("c")])
    assert choice["text"].startswith("abc")
    assert "<|im_end|>" in choice["logprobs"]["tokens"]


def test_subwords_of_a_text_of_ones_own_are_served(tmp_path):
    own = subwords("own")
    text = "KING:\nIt's Grüße, 世界 🎭\n<|endoftext|>\n🀄"
    with serving(tmp_path, own) as server:
        answer = server.post("/tokenize", text=text).json()
        assert answer["tokens"] == own.encode(text)
        assert own.end_of_text_id in answer["tokens"]
        body = {"temperature": 100.0, "seed": 1, "logit_bias": {"0": -100}}
        torn = [*own.encode("ab"), *own.encode("🀄")]
        choice = server.complete(torn, 1, echo=True, **body)["choices"][0]
        assert choice["text"].startswith("ab🀄")
        messages = [{"role": "user", "name": "KING", "content": "Who speaks?"}]
        chat = {"messages": messages, "character": "auto", "max_tokens": 9, **body}
        said = server.post("/v1/chat/completions", **chat).json()
        assert said["choices"][0]["message"]["name"] in ("FOOL", "QUEEN")
        assert said["usage"]["completion_tokens"] == 9
