"""A run that learns its text by heart ends by itself; one that still improves goes on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import pytest
import spoilt_runs

# a text of two thousand characters is learnt by heart within these steps
OVERFITTING = {
    "model": {"d_model": 32, "n_layers": 2, "n_head": 2, "max_seq_length": 16},
    "training": {
        "max_steps": 3000,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "lr_schedule": "wsd",
        "stop_when_no_better": 3,
        "eval_interval": 10,
        "eval_batches": "all",
        "sample_interval_steps": None,
        "save_checkpoint_steps": 10,
        "max_checkpoints_to_keep": 400,
        "log_interval": 10,
    },
}


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("overfitted")
    (folder / "text.txt").write_text(harness.make_text(2000), encoding="utf-8")
    harness.write_config(folder, **OVERFITTING)
    assert harness.train_here(folder, "--config", "tiny.yaml") == 0
    return folder


def final(folder: Path) -> dict:
    steps = harness.checkpoints(folder)
    return harness.load(steps[max(steps)])


def test_a_text_learnt_by_heart_ends_the_run_early_and_says_why(overfitted):
    (done,) = harness.events(overfitted, "done")
    assert done["reason"] in ("no better", "decayed")
    assert done["global_step"] < 3000
    (decay,) = harness.events(overfitted, "decay")
    assert decay["reason"] == "no better"
    assert "no better held-out loss in 3 evaluations since step" in harness.log_of(overfitted)


def test_the_best_checkpoint_is_kept_and_measured_in_full(overfitted):
    (done,) = harness.events(overfitted, "done")
    (best,) = harness.events(overfitted, "best")
    assert best["best_step"] == done["best_step"] < done["global_step"]
    assert done["best_step"] in harness.checkpoints(overfitted)
    assert best["val_loss_full"] == done["best_val_loss_full"]
    assert best["val_loss_full"] == pytest.approx(done["best_val_loss"], abs=1e-6)
    assert best["val_loss_full"] < done["val_loss_full"]
    assert "chat, serve and export take it" in harness.log_of(overfitted)


def test_a_run_that_still_improves_does_not_end_early(tmp_path):
    slow = harness.merged(OVERFITTING, {"training": {"max_steps": 60, "learning_rate": 1e-3}})
    harness.write_config(tmp_path, **slow)
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    (done,) = harness.events(tmp_path, "done")
    assert (done["global_step"], done["reason"]) == (60, "max_steps")


@pytest.mark.slow
def test_a_resume_at_any_moment_ends_as_the_straight_run(overfitted, tmp_path):
    """Before the plateau, within its evaluations, right where the decay begins, and in it."""
    steps = sorted(harness.checkpoints(overfitted))
    (decay,) = harness.events(overfitted, "decay")
    began = decay["step"]
    for step in {10, began - 20, began, began + 10, steps[-2]} & set(steps):
        folder = tmp_path / f"from{step}"
        shutil.copytree(overfitted, folder)
        for other, path in harness.checkpoints(folder).items():
            if other > step:
                path.unlink()
        start = str(harness.checkpoints(folder)[step])
        assert harness.train_here(folder, "--config", "tiny.yaml", "--resume_from", start) == 0
        there = final(overfitted)
        here = final(folder)
        assert there["global_step"] == here["global_step"]
        assert harness.same(harness.trained(there), harness.trained(here))
        for part in ("schedule", "plateau", "marks"):
            assert there["state"][part] == here["state"][part]


def test_a_run_ended_by_its_evaluations_says_how_to_go_on(overfitted, tmp_path, capsys):
    folder = tmp_path / "again"
    shutil.copytree(overfitted, folder)
    steps = harness.checkpoints(folder)
    start = ("--config", "tiny.yaml", "--resume_from", str(steps[max(steps)]))
    assert harness.train_here(folder, *start) == 0
    said = capsys.readouterr().err
    assert "is finished at step" in said
    assert "--set training.stop_when_no_better=null" in said


# A rewind from within the decay to before it

# a plateau, and so the decay, comes after about 20 steps
SHORT = {
    "learning_rate": 3e-2,
    "stop_when_no_better": 2,
    "eval_interval": 4,
    "safety": {"rewind_skip_steps": 2},
}
CAUSES = {
    "no better": SHORT,
    "planned": SHORT | {"max_steps": 30, "decay_share": 0.4, "stop_when_no_better": 9},
}


def short_run(folder: Path, keys: dict[str, Any], *arguments: str, **spoiling: Any) -> int:
    """Train on a short text; return the exit code. A resume needs the same arguments."""
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(harness.make_text(1000), encoding="utf-8")
    harness.write_config(folder, **harness.merged(OVERFITTING, {"training": keys}))
    return spoilt_runs.run(folder, *arguments, **spoiling)


class Rewound:
    """A run that diverges right after its decay began, and goes back to two steps before that.

    began: where the decay begins. bad: positions of the data at which the loss is not finite.
    """

    def __init__(self, parent: Path, cause: str) -> None:
        assert short_run(parent / "clean", CAUSES[cause]) == 0
        (decay,) = harness.events(parent / "clean", "decay")
        assert decay["reason"] == cause
        self.parent = parent
        self.clean = parent / "clean"
        self.began = decay["step"]
        self.bad = range(self.began + 1, self.began + 4)
        # a rewind goes back to a multiple of this
        self.keys = CAUSES[cause] | {"save_checkpoint_steps": self.began - 2}
        self.folder = parent / "rewound"
        assert self.run(self.folder) == 0

    def run(self, folder: Path, *arguments: str, **stop: Any) -> int:
        spoil = spoilt_runs.poison(self.bad)
        return short_run(folder, self.keys, *arguments, spoil=spoil, **stop)


@pytest.fixture(scope="module", params=["no better", *harness.slow("planned")])
def rewound(tmp_path_factory, request) -> Rewound:
    return Rewound(tmp_path_factory.mktemp("rewound"), request.param)


def test_a_rewind_to_before_the_decay_lets_it_begin_anew(rewound):
    (rewind,) = harness.events(rewound.folder, "rewind")
    assert rewind["step"] == rewound.began + 4
    assert rewind["to"] == rewound.began - 2
    decays = [
        {name: event[name] for name in event.keys() - {"time"}}
        for event in harness.events(rewound.folder, "decay")
    ]
    assert decays[0]["step"] == rewound.began
    assert decays == decays[:1] * 2
    before = harness.load(harness.checkpoints(rewound.folder)[rewound.began - 2])["state"]
    if decays[0]["reason"] == "no better":
        assert before["plateau"]["no_better"] == 1  # of the 2 that begin it
    assert not before["schedule"]["in_decay"]


def leaving_out(first: int, end: int) -> Callable:
    """Return a Spoil that spoils nothing and leaves out positions of the data from the start."""

    def spoil(state, loss):
        state.progress.skipped_ranges = [(first, end)]
        return loss

    return spoil


def test_a_rewind_out_of_the_decay_costs_only_its_data(rewound):
    """It ends in the bits of a run that leaves out the same data and never diverges."""
    (rewind,) = harness.events(rewound.folder, "rewind")
    folder = rewound.parent / "leaves_out"
    assert short_run(folder, rewound.keys, spoil=leaving_out(*rewind["skipped"])) == 0
    ends = []
    for run in (rewound.folder, folder, rewound.clean):
        end = harness.trained(final(run))
        assert end["state"].pop("health")["rewinds"] == int(run == rewound.folder)
        ends.append(end)
    assert harness.same(ends[0], ends[1])
    assert not harness.same(ends[0]["model_state_dict"], ends[2]["model_state_dict"])


@pytest.mark.parametrize(
    "moment",
    ["in the new decay", *harness.slow("among the bad steps", "after the rewind")],
)
def test_a_run_stopped_around_such_a_rewind_ends_the_same(rewound, tmp_path, moment):
    def now(state) -> bool:
        step = state.progress.global_step
        if moment == "among the bad steps":
            return step == rewound.began + 2
        is_rewound = state.health.rewinds == 1
        return is_rewound and step >= rewound.began - 2 + 4 * (moment == "in the new decay")

    folder = tmp_path / "stopped"
    assert rewound.run(folder, stop_when=now) == 143
    stopped_at = final(folder)["state"]
    assert stopped_at["health"]["rewinds"] == int(moment != "among the bad steps")
    assert stopped_at["schedule"]["in_decay"] is (moment != "after the rewind")
    assert rewound.run(folder, "--resume_from", "latest") == 0
    assert harness.same(harness.trained(final(folder)), harness.trained(final(rewound.folder)))
