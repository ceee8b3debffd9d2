"""`--until_best`, and the prediction: from the command line to the last line of the log."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest

# a model so small that its run ends in seconds
TINY = [
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_head=1",
    "model.d_hid=24",
    "model.max_seq_length=32",
    "training.batch_size=4",
    "training.accumulate_grad_batches=1",
    "training.optimizer=adamw",
    "training.learning_rate=2e-2",
    "training.min_learning_rate=1e-4",
    "training.compile=false",
    "training.threads=1",
    "training.report=false",
    "sampling.max_new_tokens=8",
]
SET = [word for key in TINY for word in ("--set", key)]


def write_text(folder: Path, characters: int = 3000) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "my_text.txt").write_text(harness.make_text(characters), encoding="utf-8")


def train(folder: Path, *arguments: str) -> int:
    return harness.train_here(folder, "my_text.txt", *arguments)


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Path:
    """A folder with a run that was left to end by itself."""
    folder = tmp_path_factory.mktemp("until_best") / "work"
    write_text(folder)
    assert train(folder, "--until_best", *SET, "--set", "training.stop_when_no_better=2") == 0
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A folder with a run of two steps, moved away from where it was trained."""
    folder = tmp_path_factory.mktemp("two_steps") / "work"
    write_text(folder)
    assert train(folder, "--minutes", "1", *SET, "--set", "training.max_steps=2") == 0
    return folder.rename(folder.with_name("kept"))


@pytest.fixture
def two_steps(kept) -> Iterator[Path]:
    """A copy of that folder in the place where it was trained."""
    folder = kept.with_name("work")
    shutil.copytree(kept, folder, symlinks=True)
    yield folder
    shutil.rmtree(folder)


def choice(folder: Path, what: str) -> dict:
    (event,) = harness.events(folder, "choice", what=what)
    return event


def test_the_run_ends_by_itself_after_the_decay_and_at_its_best(ended):
    (done,) = harness.events(ended, "done")
    assert done["reason"] in ("no better", "decayed")
    (decay,) = harness.events(ended, "decay")
    assert decay["reason"] == "no better"
    evaluations = harness.events(ended, "evaluation")
    assert len(evaluations) > 4  # two without a gain begin the decay, two more end it
    assert evaluations[-1]["val_loss"] < 0.7 * evaluations[0]["val_loss"]


def test_the_end_says_what_was_predicted_and_what_came_out(ended):
    predicted = choice(ended, "prediction")
    (outcome,) = harness.events(ended, "outcome")
    assert outcome["predicted"] == predicted["chosen"]
    assert outcome["low"] == predicted["measured"]["low"]
    last = harness.events(ended, "evaluation")[-1]["val_loss_full"]
    best = [event["val_loss_full"] for event in harness.events(ended, "best")]
    assert outcome["val_loss_full"] == (best[0] if best else last)
    assert outcome["inside"] is (outcome["low"] <= outcome["val_loss_full"] <= outcome["high"])
    assert outcome["twice_the_minutes"] == 0
    assert "More minutes would bring nothing: the text is learnt" in outcome["text"]


def test_the_log_ends_with_the_best_model_its_text_and_commands(ended):
    (done,) = harness.events(ended, "done")
    lines = harness.log_of(ended).splitlines()
    (title,) = [i for i, line in enumerate(lines) if "the best model, of step" in line]
    assert (
        f"step {done['best_step']:,}, val_loss {done['best_val_loss']:.4f}, writes:"
        in (lines[title])
    )
    assert lines[title + 1].startswith("    ")
    samples = harness.lines_in(harness.run_dir(ended) / "samples.jsonl")
    of_best = [one for one in samples if one["step"] == done["best_step"]]
    assert [one["index"] for one in of_best] == [1, 2, 3]
    shown = [line.strip() for line in lines[title + 1 : -4]]
    text = of_best[0]["prompt"] + of_best[0]["text"]
    assert shown == [line.strip() for line in text.splitlines()]
    run_id = harness.run_dir(ended).name
    talk, take = lines[-4:-2]
    assert "talk to it: " in talk
    assert talk.endswith(f"chat.py {run_id}")
    assert take.endswith(f"export.py {run_id} --to out --format hf")


def test_a_text_that_is_learnt_ends_with_the_commands_of_a_student(ended, tmp_path):
    """As they are printed, but with fewer steps: a second run, and a student of both."""
    shorter = ["--set", "training.max_steps=20"]
    again, of_both = (line.partition(": ")[2] for line in harness.log_of(ended).splitlines()[-2:])
    folder = tmp_path / "work"
    shutil.copytree(ended, folder, symlinks=True)
    first = harness.run_dir(ended).name
    assert harness.train_here(folder, *shlex.split(again)[2:], *shorter) == 0
    (second,) = {path.name for path in (folder / "logs" / "tensorboard").iterdir()} - {first}
    arguments = shlex.split(of_both.replace(" RUN ", f" {second} "))[2:]
    script = harness.SCRIPT.with_name("distil.py")
    done = harness.run_script(folder, *arguments, *shorter, script=script)
    assert done.returncode == 0, done.stderr
    assert f"teacher 1, {first}" in done.stderr
    assert f"teacher 2, {second}" in done.stderr


def test_a_text_that_is_not_learnt_ends_without_them(kept):
    assert "student" not in harness.log_of(kept)


@pytest.mark.slow
def test_the_limit_of_minutes_brings_the_decay_and_ends_the_run(tmp_path):
    """A large text is not learnt in seconds: the decay comes because the minutes near their end."""
    write_text(tmp_path, 200_000)
    assert train(tmp_path, "--until_best", "--minutes", "0.15", *SET) == 0
    (decay,) = harness.events(tmp_path, "decay")
    (done,) = harness.events(tmp_path, "done")
    assert decay["reason"] == "max_minutes"
    assert done["reason"] in ("max_minutes", "decayed", "no better")
    assert harness.rows(tmp_path)[-1]["time_s"] < 9
    (outcome,) = harness.events(tmp_path, "outcome")
    assert outcome["twice_the_minutes"] is not None


# The prediction, resumed


def test_a_resumed_run_compares_with_what_was_predicted_before(two_steps):
    folder = two_steps
    more = ("--set", "training.max_steps=4")
    assert train(folder, "--resume_from", "latest", *more) == 0
    outcomes = harness.events(folder, "outcome")
    predicted = choice(folder, "prediction")["chosen"]
    assert [outcome["predicted"] for outcome in outcomes] == [predicted, predicted]
    losses = [event["val_loss_full"] for event in harness.events(folder, "evaluation")]
    assert [outcome["val_loss_full"] for outcome in outcomes] == [loss for loss in losses if loss]


def test_a_run_resumed_with_logs_elsewhere_still_knows_its_prediction(two_steps):
    folder = two_steps
    (yaml,) = (folder / "logs" / "tensorboard").glob("*/my_text.yaml")
    more = ["--set", "training.max_steps=4", "--set", "paths.logs=other"]
    resume = ["--config", str(yaml.relative_to(folder)), "--resume_from", "latest", *more]
    assert harness.train_here(folder, *resume) == 0
    events = harness.lines_in(next((folder / "other" / "tensorboard").glob("*/events.jsonl")))
    assert not any(event["kind"] == "choice" for event in events)
    (outcome,) = [event for event in events if event["kind"] == "outcome"]
    assert outcome["predicted"] == choice(folder, "prediction")["chosen"]


def test_the_yaml_of_a_run_begins_another_one_without_its_prediction(two_steps):
    """What was predicted and came out of the first run is in the folder of its YAML."""
    folder = two_steps
    (yaml,) = (folder / "logs" / "tensorboard").glob("*/my_text.yaml")
    assert harness.train_here(folder, "--config", str(yaml), "--set", "paths.logs=other") == 0
    events = harness.lines_in(next((folder / "other" / "tensorboard").glob("*/events.jsonl")))
    assert "done" in [event["kind"] for event in events]
    assert "outcome" not in [event["kind"] for event in events]


def test_a_run_from_another_models_weights_says_that_nothing_is_predicted(two_steps):
    (checkpoint,) = (two_steps / "checkpoints").glob("*_step_2.pt")
    start = ["--init_from", str(checkpoint), "--minutes", "1", "--set", "training.max_steps=2"]
    assert train(two_steps, *start, *SET, "--set", "paths.logs=other") == 0
    events = harness.lines_in(next((two_steps / "other" / "tensorboard").glob("*/events.jsonl")))
    (prediction,) = [event for event in events if event.get("what") == "prediction"]
    assert prediction["chosen"] is None
    assert "starts from a model that has learnt from other texts" in prediction["text"]
    assert "outcome" not in [event["kind"] for event in events]


# The dry run


def test_a_dry_run_says_the_prediction_and_leaves_nothing(tmp_path, capsys):
    write_text(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert train(tmp_path, "--until_best", "--minutes", "1", *SET, "--dry_run") == 0
    out = capsys.readouterr().out
    assert "\nprediction: held-out loss about " in out
    assert "\nend: after 4 evaluations in a row" in out
    assert sorted(tmp_path.rglob("*")) == before
