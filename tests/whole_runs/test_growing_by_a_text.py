"""A run grows by a second text: it learns the new one as from scratch and keeps the old one."""

import harness
import pytest

STEPS = 80
NAMES = {"alone": None, "watched": 0, "replayed": 0.3}


@pytest.fixture(scope="module")
def losses(tmp_path_factory) -> dict[str, list[dict[str, float]]]:
    """Return the losses by source, at the start and at the end, of runs that grow from another."""
    folder = tmp_path_factory.mktemp("grown")
    (folder / "new.txt").write_text(harness.make_text(9000, seed=2).upper(), encoding="utf-8")
    training = {
        "max_steps": STEPS,
        "log_interval": None,
        "eval_interval": STEPS,
        "eval_batches": 8,
        "sample_interval_steps": None,
        "save_checkpoint_steps": None,
        "warmup_steps": 10,
        "attention": "sdpa",
        "compile": False,
    }
    sections = {"training": training, "model": {"dropout": 0.0, "d_model": 24}}
    harness.write_config(folder, name="old", **sections)
    assert harness.train_here(folder, "--config", "old.yaml") == 0
    (start,) = (folder / "checkpoints").glob(f"old_*_step_{STEPS}.pt")
    found = {}
    for name, replay in NAMES.items():
        data = {"path": "new.txt", "replay": replay}
        harness.write_config(folder, name=name, data=data, **sections)
        begins = () if replay is None else ("--init_from", str(start))
        assert harness.train_here(folder, "--config", f"{name}.yaml", *begins) == 0
        (run_dir,) = (folder / "logs" / "tensorboard").glob(f"{name}_*")
        rows = harness.lines_in(run_dir / "metrics.jsonl")
        found[name] = [row.get("val_loss_by_source", {"new.txt": row["val_loss"]}) for row in rows]
    return found


@pytest.mark.slow
def test_a_replayed_text_is_kept_and_another_forgotten(losses):
    rise = {
        name: losses[name][-1]["old: text.txt"] - losses[name][0]["old: text.txt"]
        for name in ("watched", "replayed")
    }
    assert rise["replayed"] < 0.05
    assert rise["watched"] > 1


@pytest.mark.slow
def test_a_grown_run_learns_the_new_text_as_from_scratch(losses):
    assert losses["replayed"][-1]["new.txt"] < losses["alone"][-1]["new.txt"] + 0.05
