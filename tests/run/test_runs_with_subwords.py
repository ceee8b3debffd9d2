"""A run whose text is read as a model's subwords: trained, saved, resumed, and talked to."""

import io
from pathlib import Path

import parts
import pytest
import torch
from tiny_tokenizers import SPEECHES, changed, subwords, tokenizer_json

from chatgot.chat.console import Pipe
from chatgot.chat.session import Session
from chatgot.chat.speaking import Actor
from chatgot.chat.talk import talk
from chatgot.checkpointing.checkpoint_file import load_checkpoint, load_weights, save_checkpoint
from chatgot.checkpointing.stored_vocabulary import stored_vocabulary, subwords_in
from chatgot.data.configured_text import load_text
from chatgot.data.vocabulary import Vocabulary
from chatgot.errors import CheckpointRejected, ConfigError
from chatgot.model.gpt import build_model
from chatgot.run.assembly import Run, assemble, make_prompts
from chatgot.run.resuming import find_checkpoint, resume, start_from
from chatgot.run.starting import Start
from chatgot.sampling.controls import Controls
from chatgot.sampling.engine import Engine
from chatgot.sampling.generation import continue_texts
from chatgot.sampling.loading import load_model
from chatgot.training.log_lines import text_line
from chatgot.training.step import compute_gradients, update_weights

PADDING = 12  # rows of the model that are no tokens


def settings(folder: Path, **keys):
    """Return a configuration of a text in a folder, which is written there."""
    text = folder / "text.txt"
    text.write_text(SPEECHES * 12, encoding="utf-8")
    folders = {"cache": str(folder / "cache"), "checkpoints": str(folder / "checkpoints")}
    training = {"batch_size": 2, "max_steps": 100, **keys}
    model = {"max_seq_length": 16, "dropout": 0.1}
    return parts.config(data={"path": str(text)}, paths=folders, training=training, model=model)


def start_of(config, vocabulary: Vocabulary) -> Start:
    """Return what an import brings: weights with more rows than tokens, and the subwords."""
    model = build_model(config.model, len(vocabulary) + PADDING, parts.CPU, 77)
    return Start(dict(model.state_dict()), vocabulary.tokens, "hf", vocabulary=vocabulary)


def begin(folder: Path, kind: str = "gpt2") -> Run:
    """Return a new run that starts from an import, with nothing trained yet."""
    config = settings(folder)
    start = start_of(config, subwords(kind))
    tokens = load_text(config, Path(config.data.path), start.vocabulary)
    run = assemble(config, tokens, parts.CPU, None, start.tensors)
    run.state.run_id = parts.RUN_ID
    start_from(run, start, Path("model"))
    run.model.train()
    return run


def go_on(folder: Path, path: Path) -> Run:
    """Return a run that is resumed from a file: all that it needs of the vocabulary is in it."""
    config = settings(folder)
    point = find_checkpoint(str(path), config, Path("tiny.yaml"), set())
    vocabulary = stored_vocabulary(point.content, point.path)
    tokens = load_text(config, Path(config.data.path), vocabulary)
    run = assemble(config, tokens, parts.CPU, point.content)
    run.model.train()
    resume(run, point)
    return run


def train(run: Run, steps: int) -> None:
    for _ in range(steps):
        update_weights(run, compute_gradients(run))


@pytest.fixture
def saved(tmp_path) -> Path:
    """The checkpoint of a run after two steps."""
    run = begin(tmp_path)
    train(run, 2)
    return parts.checkpoint_file(tmp_path, run)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "own"])
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, kind):
    whole = begin(tmp_path, kind)
    before = parts.copied(whole.model.state_dict())
    train(whole, 2)
    path = parts.checkpoint_file(tmp_path, whole)
    train(whole, 2)
    resumed = go_on(tmp_path, path)
    train(resumed, 2)
    assert parts.same(whole.model.state_dict(), resumed.model.state_dict())
    assert parts.same(whole.optimizer.state_dict(), resumed.optimizer.state_dict())
    assert not parts.same(before, resumed.model.state_dict())
    assert resumed.vocabulary.tokens == subwords(kind).tokens
    assert resumed.speakers == whole.speakers
    assert [speaker.name for speaker in whole.speakers] == ["KING", "FOOL", "QUEEN"]


def test_all_rows_of_an_import_are_taken(tmp_path):
    run = begin(tmp_path)
    theirs = start_of(run.config, subwords()).tensors["token_embedding.weight"]
    assert torch.equal(run.model.state_dict()["token_embedding.weight"], theirs)
    assert len(theirs) == len(subwords()) + PADDING


def test_the_log_says_that_the_tokens_are_subwords(tmp_path):
    run = begin(tmp_path)
    assert f"tokens (subwords), a vocabulary of {len(subwords())}" in text_line(run)
    assert "tokens (characters), a vocabulary of " in text_line(parts.run())


def test_samples_of_a_run_continue_its_prompts(tmp_path):
    run = begin(tmp_path)
    prompts = make_prompts(run)
    *_, texts = continue_texts(run.model, run.vocabulary, prompts, run.config.sampling, 1)
    assert len(texts) == len(prompts)
    assert any(texts)


@pytest.mark.parametrize("kind", ["gpt2", "own"])
def test_a_saved_model_is_talked_to_with_its_subwords(tmp_path, capsys, kind):
    loaded = load_model(parts.checkpoint_file(tmp_path, begin(tmp_path, kind)), parts.CPU)
    assert loaded.vocabulary.tokens == subwords(kind).tokens
    assert loaded.model.vocab_size == len(subwords(kind)) + PADDING
    actor = Actor(
        Engine(loaded.model, loaded.vocabulary),
        loaded.vocabulary,
        loaded.speakers,
        loaded.config.model.max_seq_length,
        Controls(max_new_tokens=12, seed=3, dry_multiplier=0.8, dry_allowed_length=2),
    )
    typed = "Who's there?\nÉmile 漢字 🐉\n/with auto\nSpeak.\n/watch 2\n"
    session = Session(actor, Pipe(io.StringIO(typed)), "FOOL", "KING")
    talk(session)
    shown = capsys.readouterr()
    assert shown.out.count(":\n") >= 3
    assert "never seen" not in shown.err
    assert session.conversation.turns[0].text == "Who's there?"


def test_a_checkpoint_tells_a_new_run_its_subwords(saved, tmp_path):
    weights, tokens = load_weights(saved)
    assert tokens == subwords().tokens
    vocabulary = subwords_in(saved)
    assert (vocabulary.json, vocabulary.end_of_text) == (tokenizer_json(), "<|endoftext|>")
    assert len(weights["token_embedding.weight"]) == len(subwords()) + PADDING
    assert subwords_in(parts.checkpoint_file(tmp_path, parts.run())) is None


def test_a_run_of_subwords_is_not_resumed_with_characters(saved, tmp_path):
    config = settings(tmp_path)
    point = find_checkpoint(str(saved), config, Path("tiny.yaml"), set())
    for vocabulary in (None, subwords("qwen2")):
        tokens = load_text(config, Path(config.data.path), vocabulary)
        run = assemble(config, tokens, parts.CPU, point.content)
        with pytest.raises(CheckpointRejected, match="trained on subwords, this run has other"):
            resume(run, point)


def test_a_text_too_short_in_subwords_is_refused_in_subwords(tmp_path):
    config = settings(tmp_path, batch_size=1000)
    with pytest.raises(ConfigError, match=r"\d+ subwords, at least \d+ are needed"):
        load_text(config, Path(config.data.path), subwords())


TOKENS = subwords().tokens
ODD = {
    "a tokenizer of another kind": ({"tokenizer": changed(normalizer={"type": "Lowercase"})}, True),
    "a tokenizer that is no JSON": ({"tokenizer": "{"}, True),
    "another tokenizer": ({"tokenizer": tokenizer_json("qwen2")}, True),
    "an end that is no special token": ({"tokenizer": changed(added_tokens=[])}, True),
    "an end that is no token": ({"end_of_text": "<|no|>"}, False),
    "an end that is a list": ({"end_of_text": ["<|endoftext|>"]}, False),
    "a token twice": ({"vocabulary": [*TOKENS[:-1], TOKENS[0]]}, False),
    "a token that is a number": ({"vocabulary": [*TOKENS[:-1], 5]}, False),
    "no tokens": ({"vocabulary": []}, False),
    "an end without a tokenizer": ({"tokenizer": None}, False),
    "one token less than rows": ({"vocabulary": TOKENS[:-1]}, True),
}


@pytest.mark.parametrize("case", ODD)
def test_a_checkpoint_with_an_odd_vocabulary_is_refused(saved, case):
    change, is_readable = ODD[case]
    content = {**load_checkpoint(saved), **change}
    content = {key: value for key, value in content.items() if value is not None or key == "loss"}
    path = saved.parent / "odd.pt"
    if not is_readable:
        with pytest.raises(RuntimeError, match="could not be loaded again"):
            save_checkpoint(path, content)
    parts.forge(path, content)
    with parts.at_once(), pytest.raises(CheckpointRejected) as caught:
        load_model(path, parts.CPU)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
