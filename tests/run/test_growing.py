"""A run that grows from another one by a new text: old text replayed, both losses measured."""

import argparse
import shutil
from pathlib import Path
from types import SimpleNamespace

import harness
import pytest
import torch

from chatgot.checkpointing.checkpoint_file import load_checkpoint, stored_config
from chatgot.config import DataConfig
from chatgot.data.bpe import train_subwords
from chatgot.data.old_text import (
    OldText,
    are_old_texts,
    old_texts_in,
    texts_behind,
    with_old_text,
)
from chatgot.data.token_cache import load_tokens
from chatgot.errors import ConfigError
from chatgot.sampling.loading import load_model
from chatgot.sampling.training_text import training_text
from chatgot.training.copies import CopiesInSamples

NEW = "new.txt"
OLD = "old: text.txt"
SECTIONS = {
    "training": {
        "max_steps": 4,
        "eval_interval": 2,
        "sample_interval_steps": None,
        "save_checkpoint_steps": 2,
    },
    "model": {"dropout": 0.1},
}
GROWN = SECTIONS | {"data": {"path": NEW, "replay": 0.2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a run of 4 steps on text.txt, and one on new.txt that has grown from it."""
    folder = tmp_path_factory.mktemp("growing")
    harness.write_config(folder, **SECTIONS)
    assert harness.train_here(folder, "--config", "tiny.yaml") == 0
    text = harness.make_text(seed=3).replace("KING:", "ZOË:").replace("w", "§")
    (folder / NEW).write_text(text, encoding="utf-8")
    harness.write_config(folder, name="grown", **GROWN)
    start = ("--init_from", str(newest(folder, "tiny")))
    assert harness.train_here(folder, "--config", "grown.yaml", *start) == 0
    return folder


def newest(folder: Path, name: str, step: int = 4) -> Path:
    (path,) = (folder / "checkpoints").glob(f"{name}_*_step_{step}.pt")
    return path


def log_of(folder: Path, name: str = "grown") -> str:
    return next((folder / "logs").glob(f"train_{name}_*.log")).read_text(encoding="utf-8")


def test_a_grown_run_knows_the_characters_of_both_texts(folder):
    texts = [(folder / name).read_text(encoding="utf-8") for name in ("text.txt", NEW)]
    vocabulary = load_checkpoint(newest(folder, "grown"))["vocabulary"]
    assert vocabulary[1:] == sorted(set("".join(texts)))
    assert "does not know 3 of this text's tokens" in log_of(folder)
    assert "'Z' '§' 'Ë'" in log_of(folder)


def test_the_end_says_how_both_losses_have_changed(folder):
    at_start, _, at_end = [row["val_loss_by_source"] for row in rows_of(folder) if row["val_loss"]]
    assert list(at_end) == [NEW, OLD]
    for name, loss in at_end.items():
        before = at_start[name]
        words = f"val_loss of {name}: {before:.4f} at the start, {loss:.4f} at step 4 "
        assert f"{words}({loss - before:+.4f})" in log_of(folder)


def test_val_loss_counts_each_source_by_its_share(folder):
    for row in rows_of(folder):
        if row["val_loss"] is not None:
            losses = row["val_loss_by_source"]
            assert row["val_loss"] == pytest.approx(0.8 * losses[NEW] + 0.2 * losses[OLD])


def rows_of(folder: Path) -> list[dict]:
    (run_dir,) = (folder / "logs" / "tensorboard").glob("grown_*")
    return harness.lines_in(run_dir / "metrics.jsonl")


def test_a_grown_run_goes_on_bit_for_bit_without_init_from(folder, tmp_path):
    """The checkpoint says where the old text is."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    undisturbed = load_checkpoint(newest(copy, "grown"))
    half = str(newest(copy, "grown", 2))
    assert harness.train_here(copy, "--config", "grown.yaml", "--resume_from", half) == 0
    resumed = load_checkpoint(newest(copy, "grown"))
    assert resumed["old_texts"] == undisturbed["old_texts"]
    assert harness.same(harness.trained(resumed), harness.trained(undisturbed))


def test_a_run_that_grows_again_replays_both_older_texts(folder, monkeypatch):
    monkeypatch.chdir(folder)
    path = newest(folder, "grown")
    content = load_checkpoint(path)
    texts = texts_behind(content, stored_config(content, path))
    assert [text.path for text in texts] == [folder / NEW, folder / "text.txt"]
    config = stored_config(content, path)
    third = folder / "third.txt"
    third.write_text(harness.make_text(2000, seed=9), encoding="utf-8")
    tokens, _ = with_old_text(load(third), config, "third.txt", texts, is_new=True)
    old = tokens.parts[-1]
    assert old.name == f"old: {NEW}, text.txt"
    lengths = [len(load(folder / name).ids) for name in (NEW, "text.txt")]
    assert old.train[1] - old.train[0] == sum(n - n // 10 for n in lengths) + 1
    assert old.held_out[1] - old.held_out[0] == sum(n // 10 for n in lengths) + 1


def test_the_old_text_belongs_to_what_a_grown_model_was_trained_on(folder, monkeypatch):
    monkeypatch.chdir(folder)
    loaded = load_model(newest(folder, "grown"), torch.device("cpu"))
    tokens = training_text(loaded)
    assert tokens is not None
    assert [part.name for part in tokens.parts] == [NEW, OLD]
    assert tokens.vocabulary.tokens == loaded.vocabulary.tokens
    (folder / "text.txt").rename(folder / "away.txt")
    try:
        assert training_text(loaded) is None
    finally:
        (folder / "away.txt").rename(folder / "text.txt")


def test_text_held_out_by_characters_stays_so_as_subwords(folder):
    """Its last tenth in characters is far less than a tenth of its tokens."""
    known = harness.make_text(2000)
    uneven = folder / "uneven.txt"
    uneven.write_text("0123456789\n" * 400 + known, encoding="utf-8")
    vocabulary = train_subwords([known * 2], 600)
    new = load_tokens(folder / NEW, folder / "cache", vocabulary)
    data = DataConfig(path=NEW, replay=0.2, tokenizer="bpe")
    config = stored_config(load_checkpoint(newest(folder, "grown")), Path("grown.pt"))
    paths = config.paths.model_copy(update={"cache": str(folder / "cache")})
    config = config.model_copy(update={"data": data, "paths": paths})
    old = OldText(data=DataConfig(path=str(uneven)), sha256="", characters=True)
    tokens, _ = with_old_text(new, config, NEW, [old], is_new=True)
    held_out = vocabulary.decode(tokens.ids[slice(*tokens.parts[-1].held_out)].tolist())
    tenth = len(uneven.read_text(encoding="utf-8")) // 10
    assert tenth <= len(held_out) < tenth + max(map(len, vocabulary.tokens))


def test_copies_are_looked_for_in_both_texts_even_if_none_is_replayed(folder, monkeypatch):
    """With replay 0 the windows of training are those of the new text alone."""
    monkeypatch.chdir(folder)
    content = load_checkpoint(newest(folder, "grown"))
    data = stored_config(content, newest(folder, "grown")).data
    config = stored_config(content, newest(folder, "grown")).model_copy(
        update={"data": data.model_copy(update={"replay": 0.0})}
    )
    texts = old_texts_in(content)
    tokens, _ = with_old_text(load(folder / NEW), config, NEW, texts, is_new=False)
    run = SimpleNamespace(
        tokens=tokens,
        config=config,
        state=SimpleNamespace(progress=SimpleNamespace(global_step=1)),
        train_windows=SimpleNamespace(ids=tokens.ids[: tokens.parts[0].train[1]]),
    )
    copies = CopiesInSamples(run)
    old = (folder / "text.txt").read_text(encoding="utf-8")
    assert copies.measure([old[100:160]])["samples/copied_share"] == 1
    held_out = [len(load(folder / name).ids) // 10 for name in (NEW, "text.txt")]
    assert copies._held_out.characters <= sum(held_out)


def load(path: Path):
    return load_tokens(path, path.parent / "cache")


# Where the old text is


def found(folder: Path, is_new: bool = True, texts: list[OldText] | None = None, **data):
    """Return what `with_old_text` does for new.txt, and the old text as it was found."""
    content = load_checkpoint(newest(folder, "grown"))
    config = stored_config(content, Path("grown.pt"))
    keys = config.data.model_dump() | data
    config = config.model_copy(
        update={
            "data": DataConfig(**keys),
            "paths": config.paths.model_copy(update={"cache": str(folder / "cache")}),
        }
    )
    if texts is None:
        texts = [OldText(data=DataConfig(path=str(folder / "text.txt")), sha256=sha_of(folder))]
    return with_old_text(load(folder / NEW), config, NEW, texts, is_new=is_new)


def sha_of(folder: Path) -> str:
    return load_checkpoint(newest(folder, "tiny"))["data_sha256"]


def gone(folder: Path) -> OldText:
    return OldText(data=DataConfig(path=str(folder / "gone.txt")), sha256=sha_of(folder))


def test_a_missing_old_text_is_refused_with_the_key_that_points_to_it(folder):
    with pytest.raises(ConfigError) as caught:
        found(folder, texts=[gone(folder)])
    assert "gone.txt: no such file" in str(caught.value)
    assert "set data.replay_path to" in str(caught.value)


def test_replay_path_says_where_the_old_text_is_now(folder):
    _, (old,) = found(folder, texts=[gone(folder)], replay_path=str(folder / "text.txt"))
    assert old.path == folder / "text.txt"
    assert old.sha256 == sha_of(folder)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_changed_old_text_is_refused(folder, is_new):
    text = OldText(data=DataConfig(path=str(folder / NEW)), sha256="0" * 64)
    with pytest.raises(ConfigError) as caught:
        found(folder, is_new, texts=[text])
    assert "new.txt is not the text that the run before was trained on" in str(caught.value)


def test_another_old_text_is_taken_where_the_user_names_it(folder, caplog):
    """Only at the start: a resumed run replays what it replayed before."""
    path = str(folder / NEW)
    _, (old,) = found(folder, replay_path=path)
    assert old.sha256 == load(folder / NEW).text_sha256
    assert "is not the text that the model was trained on" in caplog.text
    with pytest.raises(ConfigError):
        found(folder, is_new=False, replay_path=path)


def test_a_model_that_names_no_text_needs_replay_path(folder):
    with pytest.raises(ConfigError) as caught:
        found(folder, texts=[])
    assert "set data.replay_path to that text" in str(caught.value)
    _, (old,) = found(folder, texts=[], replay_path=str(folder / "text.txt"))
    assert old.sha256 == sha_of(folder)


def test_a_replay_without_an_earlier_run_is_refused(folder):
    script = harness.load_script()
    config = stored_config(load_checkpoint(newest(folder, "grown")), Path("grown.pt"))
    args = argparse.Namespace(resume_from=None, init_from=None)
    with pytest.raises(ConfigError) as caught:
        script.refuse_missing_start(args, config)
    assert "--init_from" in str(caught.value)
    script.refuse_missing_start(argparse.Namespace(resume_from="latest", init_from=None), config)


@pytest.mark.parametrize(
    "value", [7, [{}], [{"data": {}, "sha256": "x"}], [{"data": {"no": 1}, "sha256": ""}]]
)
def test_a_forged_list_of_old_texts_is_none(value):
    assert not are_old_texts(value)
    assert are_old_texts([{"data": {"path": "a.txt"}, "sha256": "0" * 64}])


def test_tensorboard_has_a_curve_for_each_source(folder):
    (run_dir,) = (folder / "logs" / "tensorboard").glob("grown_*")
    (path,) = run_dir.glob("*tfevents*")
    assert b"val/loss_of/new.txt" in path.read_bytes()
    assert b"val/loss_of/old__text.txt" in path.read_bytes()


def test_the_events_have_the_losses_of_each_source(folder):
    (run_dir,) = (folder / "logs" / "tensorboard").glob("grown_*")
    events = harness.lines_in(run_dir / "events.jsonl")
    first, *_, last = [event for event in events if event["kind"] == "evaluation"]
    (done,) = [event for event in events if event["kind"] == "done"]
    assert done["first_val_loss_by_source"] == first["val_loss_by_source"]
    assert done["val_loss_by_source"] == last["val_loss_by_source"]
    assert last["val_loss_by_source"].keys() == {NEW, OLD}
