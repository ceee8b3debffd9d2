"""`evaluate` says how well a model predicts texts, and what it has learned by heart."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import (
    ROOT,
    checkpoints,
    events,
    load_script,
    make_text,
    rows,
    train_here,
    write_config,
)

from chatgot.data.vocabulary import Characters
from chatgot.sampling.loading import load_model
from chatgot.sampling.text_scores import score_text, token_losses

LEARNED = {
    "model": {"d_model": 64, "n_layers": 2, "n_head": 2, "d_hid": 128, "max_seq_length": 32},
    "training": {
        "max_steps": 200,
        "batch_size": 8,
        "accumulate_grad_batches": 1,
        "optimizer": "muon",
        "learning_rate": 1e-2,
        "log_interval": None,
        "eval_interval": 200,
        "eval_batches": "all",
        "sample_interval_steps": 100,
        "save_checkpoint_steps": None,
        "compile": False,
    },
    "sampling": {"prompts": ["KING:\n"], "max_new_tokens": 100, "temperature": 0},
}
DROPOUT = {"dropout": 0.0}


@pytest.fixture(scope="module")
def learned_by_heart(tmp_path_factory) -> Path:
    """Return the folder of a run that has learned one page by heart."""
    folder = tmp_path_factory.mktemp("learned")
    page = make_text(700, seed=1)
    (folder / "text.txt").write_text(page, encoding="utf-8")
    config = write_config(folder, **(LEARNED | {"model": LEARNED["model"] | DROPOUT}))
    assert train_here(folder, "--config", str(config)) == 0
    return folder


def evaluate(folder: Path, *arguments: str) -> int:
    """Run the script's main in a folder; return its exit code."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return load_script(ROOT / "scripts" / "evaluate.py").main(list(arguments))
    finally:
        os.chdir(before)


def found(folder: Path, capfd, *arguments: str) -> dict:
    capfd.readouterr()
    assert evaluate(folder, "tiny", *arguments, "--json") == 0
    return json.loads(capfd.readouterr().out)


def test_held_out_text_scores_as_in_the_run(learned_by_heart, capfd):
    text = (learned_by_heart / "text.txt").read_text(encoding="utf-8")
    held_out = text[len(text) - int(0.1 * len(text)) :]
    (learned_by_heart / "held_out.txt").write_text(held_out, encoding="utf-8")
    score = found(learned_by_heart, capfd, "held_out.txt", "--samples", "0")["all"]
    full_loss = rows(learned_by_heart)[-1]["val_loss_full"]
    assert score["tokens"] == len(held_out) - 1
    assert score["loss"] == pytest.approx(full_loss, abs=2e-3)  # bf16 rounds there
    assert score["bits_per_byte"] == pytest.approx(score["loss"] / np.log(2))


def test_a_model_that_learned_by_heart_shows_it(learned_by_heart, capfd):
    other = make_text(3000, seed=2)
    (learned_by_heart / "other.txt").write_text(other, encoding="utf-8")
    copied = found(learned_by_heart, capfd, "other.txt", "--samples", "4")["originality"]
    assert copied["samples"]["copied_share"] > 0.4
    assert copied["samples"]["longest_copy"] > 60
    assert copied["held_out"]["copied_share"] < 0.2
    assert copied["texts"]["copied_share"] < 0.2
    measured = events(learned_by_heart, "originality")
    assert [row["step"] for row in measured] == [100, 200]
    assert measured[-1]["copied_share"] > 0.4
    assert measured[-1]["copies"][0]
    assert measured[-1]["held_out_share"] < 0.2


def test_people_get_a_table_of_texts_and_speakers(learned_by_heart, capfd):
    (learned_by_heart / "odd.txt").write_text(make_text(900) + "\u1234\u1234", encoding="utf-8")
    (learned_by_heart / "more.txt").write_text(make_text(900, seed=3), encoding="utf-8")
    assert evaluate(learned_by_heart, "tiny", "odd.txt", "more.txt", "--samples", "1") == 0
    shown = capfd.readouterr().out
    for words in ("odd.txt", "  KING", "  FOOL", "all  ", "2 characters that it does not know"):
        assert words in shown


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tiny", "none.txt"], 2, "no such file"),
        (["nobody", "text.txt"], 3, "nobody"),
        (["tiny", "one.txt", "--samples", "0"], 2, "at least 2"),
    ],
)
def test_mistakes_are_refused_in_a_line(learned_by_heart, capfd, arguments, code, words):
    (learned_by_heart / "one.txt").write_text("a", encoding="utf-8")
    assert evaluate(learned_by_heart, *arguments) == code
    shown = capfd.readouterr().err
    assert words in shown
    assert len(shown.splitlines()) <= 2


def test_samples_out_of_range_are_refused(learned_by_heart):
    with pytest.raises(SystemExit) as ended:
        evaluate(learned_by_heart, "tiny", "text.txt", "--samples", "-1")
    assert ended.value.code == 2


def test_each_speaker_has_the_loss_of_their_own_lines(learned_by_heart):
    (path,) = checkpoints(learned_by_heart).values()
    loaded = load_model(path, torch.device("cpu"))
    text = "KING:\nthe war\nmy lord\n\nQUEEN:\nlove\n\n" * 3 + "KING:\nto court"
    score = score_text("text", text, loaded)
    ids = np.array(loaded.vocabulary.encode(text))
    losses = token_losses(loaded.model, ids, 32, lambda _: None)
    queens = "love\n\n"
    places = [place for place in range(len(text)) if text.startswith(queens, place)]
    own = [losses[place + i - 1] for place in places for i in range(len(queens))]
    assert score.speakers["QUEEN"].tokens == len(own)
    assert score.speakers["QUEEN"].loss == pytest.approx(np.mean(own))
    assert list(score.speakers) == ["KING", "QUEEN"]


def test_losses_are_those_of_adjacent_windows(learned_by_heart):
    (path,) = checkpoints(learned_by_heart).values()
    loaded = load_model(path, torch.device("cpu"))
    assert isinstance(loaded.vocabulary, Characters)
    ids = np.array(random.Random(0).choices(range(1, len(loaded.vocabulary)), k=80))
    losses = token_losses(loaded.model, ids, 32, lambda _: None)
    for begin, end in ((0, 32), (32, 64), (64, 79)):
        x = torch.tensor(ids[begin:end])[None]
        y = torch.tensor(ids[begin + 1 : end + 1])[None]
        mean = loaded.model(x, y)[1].item()
        assert losses[begin:end].mean() == pytest.approx(mean, rel=1e-5)
