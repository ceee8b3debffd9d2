"""Whole runs under torchrun: several ranks train the model that one process would train.

Each group takes some seconds to start, so most of these tests are marked slow.
"""

import json
import shutil
from pathlib import Path

import group_harness
import harness
import pytest
from group_harness import losses, run_group
from group_training import CONFIG, STEPS, alone, assert_same_training, by_ranks, folder_of


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The folder of a run of one process."""
    return alone(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The folder of the same run by two ranks."""
    return by_ranks(tmp_path_factory.mktemp("two"), 2)


def test_two_ranks_train_the_model_of_one_process(one, two):
    assert_same_training(one, two)


def test_evaluation_of_equal_weights_is_equal_in_every_bit(one, two):
    before, by_two = (harness.rows(folder)[0] for folder in (one, two))
    assert before["step"] == by_two["step"] == 0
    assert before["val_loss"] == by_two["val_loss"]


def test_two_ranks_write_one_run_and_a_log_each(two):
    assert group_harness.logs(two) == [".log", "_rank1.log"]
    about = json.loads((harness.run_dir(two) / "run.json").read_text())
    assert {path.name.partition("_step_")[0] for path in harness.checkpoints(two).values()} == {
        about["run_id"]
    }
    assert [row["step"] for row in harness.rows(two)] == list(range(STEPS + 1))
    assert len(harness.events(two, "done")) == 1
    assert len({(sample["step"], sample["index"]) for sample in harness.samples(two)}) == len(
        harness.samples(two)
    )
    assert len(list(harness.run_dir(two).glob("events.out.tfevents.*"))) == 1
    assert "this is rank 1" in group_harness.log_of_rank(two, 1)


def test_only_rank_0_speaks_on_the_console(two):
    said = (two / group_harness.SAID).read_text()
    assert said.count(f"step {STEPS}/{STEPS}") == 1
    assert "rank 1:" not in said


MODELS = {
    "gpt-adamw": {},
    "modern-adamw": {"model": {"architecture": "modern", "n_kv_head": 1}},
    "gpt-muon": {"training": {"optimizer": "muon"}},
    "modern-muon": {"model": {"architecture": "modern"}, "training": {"optimizer": "muon"}},
    "recomputed": {"training": {"gradient_checkpointing": True}},
    "one-by-one": {"training": {"micro_batch_size": 1}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_any_number_of_ranks_trains_the_same_model(tmp_path, name):
    """With dropout and accumulation, as the tiny configuration has. torch warns of nothing."""
    sections = MODELS[name]
    expected = alone(tmp_path, **sections)
    for ranks in (1, 2, 4):
        folder = by_ranks(tmp_path, ranks, **sections)
        assert_same_training(expected, folder)
        assert "Warning" not in (folder / group_harness.SAID).read_text()


@pytest.mark.slow
def test_ranks_train_the_matrices_of_lora(tmp_path):
    base = alone(tmp_path)
    (start,) = base.glob("checkpoints/*_step_30.pt")
    lora = {"training": {"lora": {"rank": 2, "alpha": 4}}}
    folders = []
    for ranks in (0, 2, 4):
        folder = folder_of(tmp_path, f"lora{ranks}", **lora)
        shutil.copy(base / "text.txt", folder)
        begin = (*CONFIG, "--init_from", str(start))
        if ranks == 0:
            assert harness.train_here(folder, *begin) == 0
        else:
            done = run_group(folder, ranks, *begin)
            assert done.exit_code == 0, done.said
        folders.append(folder)
    assert_same_training(folders[0], folders[1])
    assert_same_training(folders[0], folders[2])


@pytest.mark.slow
def test_one_rank_is_equal_to_one_process_in_every_bit(tmp_path):
    folders = [alone(tmp_path), by_ranks(tmp_path, 1)]
    assert losses(folders[0]) == losses(folders[1])
    assert group_harness.same_training(folders, STEPS)


@pytest.mark.slow
def test_two_micro_batches_on_two_ranks_are_equal_in_every_bit(tmp_path):
    """A sum of two numbers has one order."""
    sections = {"training": {"micro_batch_size": 6}}
    folders = [alone(tmp_path, **sections), by_ranks(tmp_path, 2, **sections)]
    assert losses(folders[0]) == losses(folders[1])
    assert group_harness.same_training(folders, STEPS)
    first, other = (harness.rows(folder)[-1] for folder in folders)
    for name in ("val_loss", "val_loss_full", "grad_norm"):
        assert first[name] == other[name]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_evaluation_of_every_token_is_equal_in_every_bit(tmp_path, ranks):
    """38 windows in batches of 4: some rank has a batch less than the others."""
    sections = {"training": {"max_steps": 1, "eval_batches": "all"}}
    folders = [alone(tmp_path, **sections), by_ranks(tmp_path, ranks, **sections)]
    first, other = (harness.rows(folder)[0] for folder in folders)
    assert first["step"] == other["step"] == 0
    assert first["val_loss"] == other["val_loss"]


@pytest.mark.slow
def test_ranks_measure_each_source_as_one_process_does(tmp_path):
    sources = {"first.txt": 1.0, "second.txt": 2.0}
    data = {"path": list(sources), "mixture": sources}
    for folder in ("alone", "ranks2"):
        (tmp_path / folder).mkdir()
        for seed, name in enumerate(sources):
            text = harness.make_text(3000, seed)
            (tmp_path / folder / name).write_text(text, encoding="utf-8")
    folders = [alone(tmp_path, data=data), by_ranks(tmp_path, 2, data=data)]
    first, other = (harness.rows(folder)[0]["val_loss_by_source"] for folder in folders)
    assert first.keys() == sources.keys()
    assert first == other
