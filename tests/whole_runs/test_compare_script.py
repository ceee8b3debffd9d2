"""`compare` puts runs side by side: a table, what differs, the noise of seeds, and a page."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import harness
import pytest
from child_environment import child_environment

COMPARE = harness.SCRIPT.with_name("compare.py")
SECTIONS = {"training": {"max_steps": 4, "eval_interval": 2, "sample_interval_steps": 4}}


def compare(folder: Path, *runs: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(COMPARE), *runs],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env=child_environment(),
        check=False,
    )


def train(folder: Path, name: str, **keys: object) -> None:
    harness.write_config(folder, name=name, **harness.merged(SECTIONS, keys))
    assert harness.train_here(folder, "--config", f"{name}.yaml") == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three runs that differ in their seeds, and one with another learning rate."""
    folder = tmp_path_factory.mktemp("compared")
    for seed in (1, 2, 3):
        train(folder, f"seed{seed}", seed=seed)
    train(folder, "slow", seed=1, training={"learning_rate": 1e-5, "min_learning_rate": 1e-6})
    return folder


@pytest.fixture(scope="module")
def said(folder) -> str:
    """Also writes the page."""
    done = compare(folder, "seed1", "seed2", "seed3", "slow")
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(folder: Path) -> dict[str, float]:
    found = {}
    for run_dir in (folder / "logs" / "tensorboard").glob("*_*"):
        done = harness.lines_in(run_dir / "events.jsonl")[-1]
        found[run_dir.name.partition("_")[0]] = done["best_val_loss_full"]
    return found


def test_the_table_lists_the_best_run_first(folder, said):
    expected = sorted(losses(folder), key=losses(folder).get)
    table = [line.split()[0] for line in said.splitlines() if line[:4] in ("seed", "slow")]
    assert table[:4] == expected
    assert f"{losses(folder)['slow']:.4f}" in said


def test_only_settings_that_differ_are_listed(said):
    assert "training.learning_rate" in said
    assert "training.batch_size" not in said


def test_a_difference_is_a_multiple_of_the_noise_of_seeds(folder, said):
    three = [losses(folder)[f"seed{seed}"] for seed in (1, 2, 3)]
    mean = sum(three) / 3
    deviation = (sum((loss - mean) ** 2 for loss in three) / 2) ** 0.5
    assert f"mean {mean:.4f}" in said
    assert f"standard deviation {deviation:.4f}" in said
    assert "x the noise of seeds" in said


def test_the_page_stands_alone_and_names_each_run(folder, said):
    page = (folder / "logs" / "tensorboard" / "compare.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("seed1", "seed2", "seed3", "slow"))
    images = re.findall(r'src="([^"]*)"', page)
    assert len(images) >= 4  # losses over steps, tokens and minutes; rate and speed
    assert all(image.startswith("data:") for image in images)
    assert "<script src" not in page


def test_runs_on_other_texts_are_said_to_be_no_match(folder, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied, symlinks=True)
    (copied / "other.txt").write_text(harness.make_text(5000, seed=8), encoding="utf-8")
    train(copied, "other", data={"path": "other.txt"})
    done = compare(copied, "seed1", "other")
    assert done.returncode == 0, done.stderr
    assert "text" in done.stdout.splitlines()[0]


@pytest.mark.parametrize(
    "runs", [("seed1",), ("seed1", "seed1"), ("seed1", "nobody"), tuple(f"r{i}" for i in range(11))]
)
def test_mistakes_are_refused_in_a_line_or_two(folder, runs):
    done = compare(folder, *runs)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
