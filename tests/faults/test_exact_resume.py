"""A run resumed at any step, with any combination of mechanisms, ends in the same bits."""

import itertools
import random
import shutil
import signal

import fault_trials
import harness
import pytest
from fault_trials import STEPS, TEACHERS, files, go_on, resumed_from, start

pytestmark = pytest.mark.slow  # `make faults` has them, with LEVEL=ci too

PRODUCT = list(itertools.product([False, True], [1, 3], [False, True], [False, True]))
# each pair of values of two factors occurs in one of these
PAIRS = [
    (False, 1, False, False),
    (True, 3, True, False),
    (True, 3, False, True),
    (False, 3, True, True),
    (True, 1, True, True),
]


@pytest.mark.parametrize(
    ("recompute", "accumulate", "bf16", "samples"),
    harness.slow_but(PAIRS, PRODUCT),
)
def test_a_run_resumed_at_any_step_ends_in_the_same_bits(
    server, side_by_side, tmp_path_factory, trials, table, recompute, accumulate, bf16, samples
):
    parent = tmp_path_factory.mktemp("product")
    training = {
        "gradient_checkpointing": recompute,
        "accumulate_grad_batches": accumulate,
        "save_checkpoint_steps": 1,
        "mixed_precision": bf16,
        "precision_dtype": "bf16",
        "max_checkpoints_to_keep": STEPS,
        "sample_interval_steps": 3 if samples else None,
    }
    reference = fault_trials.undisturbed(server, parent, training=training)

    def one(server, step):
        return resumed_at(server, reference, parent, step)

    seed = sum(map(ord, str(training)))
    steps = [1 + i for i in fault_trials.spread(trials(2, 4, STEPS - 1), STEPS - 1, seed)]
    for step, (begin, lost) in zip(steps, side_by_side(one, steps), strict=True):
        hit = begin == step
        table.add("resume at step k, product of 16 configurations", hit, lost is not None)
        assert hit
        assert lost is None


def resumed_at(server, reference, parent, step):
    """Resume a copy of the reference at a step; return where it began, and what it lost."""
    folder = parent / f"from{step}"
    shutil.copytree(reference.folder, folder)
    for other, path in files(folder).items():
        if other > step:
            path.unlink()
    # not `latest`: the copied files belong to the YAML of the original folder
    outcome = start(server, folder, [], "--resume_from", str(files(folder)[step]))
    lost = None if outcome.exit_code == 0 else outcome.said
    lost = lost or reference.lost(folder)
    begin = resumed_from(folder)
    shutil.rmtree(folder)
    return begin, lost


def test_a_run_resumed_around_its_decay_ends_in_the_same_bits(
    server, side_by_side, tmp_path_factory, table
):
    """Ending by a plateau, too, is in tests/whole_runs/test_early_end.py."""
    parent = tmp_path_factory.mktemp("decay")
    training = {
        "save_checkpoint_steps": 1,
        "max_checkpoints_to_keep": STEPS,
        "lr_schedule": "wsd",
        "decay_share": 0.5,
        "stop_when_no_better": STEPS,
        "eval_interval": 1,
    }
    reference = fault_trials.undisturbed(server, parent, training=training)
    (decay,) = harness.events(reference.folder, "decay")
    began = decay["step"]
    assert began == STEPS // 2

    def one(server, step):
        return resumed_at(server, reference, parent, step)

    steps = [1, began - 1, began, began + 1, STEPS - 1]
    for step, (begin, lost) in zip(steps, side_by_side(one, steps), strict=True):
        hit = begin == step
        table.add("resume around the decay of wsd", hit, lost is not None)
        assert hit
        assert lost is None


def test_a_killed_distillation_ends_in_the_same_bits(side_by_side, taught, tmp_path, trials, table):
    """Killed in any step; a resume names the teachers in another order, which changes nothing."""
    rng = random.Random(5)
    n = trials(2, 4, 40)

    def one(server, item):
        i, step = item
        folder = taught.student(tmp_path, f"killed{i}")
        killed, lost = kill_and_go_on(server, taught.reference, folder, step)
        shutil.rmtree(folder)
        return killed, lost

    steps = list(enumerate(rng.randint(1, STEPS) for _ in range(n)))
    for killed, lost in side_by_side(one, steps):
        hit = killed.exit_code == -signal.SIGKILL and killed.fired == ["SIGKILL"]
        table.add("resume of a distillation", hit, lost is not None)
        assert hit, killed.said
        assert lost is None


def kill_and_go_on(server, reference, folder, step, mutant=()):
    """Kill a student in its n-th step and resume it; return (killed run, what was lost)."""
    kill = ("signals", {"phase": "step", "nth": step, "names": ["SIGKILL"]})
    killed = start(server, folder, [kill])
    options = []
    if files(folder):
        reverse = ", ".join(reversed(TEACHERS))
        options = ["--set", f"training.distillation.teachers=[{reverse}]"]
    outcome = go_on(server, folder, list(mutant), *options)
    if outcome.exit_code != 0:
        return killed, outcome.said
    return killed, reference.lost(folder)


def test_a_resume_that_forgets_the_teachers_is_caught(server, taught, tmp_path, table):
    folder = taught.student(tmp_path, "mutant")
    mutant = [("mutant_no_teaching", {})]
    killed, lost = kill_and_go_on(server, taught.reference, folder, 10, mutant)
    assert killed.fired
    assert "other data, losses or norms" in lost
    table.add("mutant: learns from no teacher after a resume", 1, 1)


@pytest.mark.slow
def test_a_run_resumed_at_each_of_its_steps_ends_in_the_same_bits(
    server, reference, trial_folder, table
):
    folder = trial_folder("chain")
    every = ("--set", "training.save_checkpoint_steps=1")
    stop = ("signals", {"phase": "step", "nth": 1, "names": ["SIGTERM"]})
    for step in range(1, STEPS + 1):
        outcome = go_on(server, folder, [stop], *every)
        assert outcome.exit_code == 143, outcome.said
        assert max(files(folder)) == step
    assert go_on(server, folder, [], *every).exit_code == 0
    lost = reference.lost(folder)
    table.add("resume after every single step", STEPS, lost is not None, STEPS)
    assert lost is None


def test_saving_at_every_step_equals_saving_at_the_end(server, reference, trial_folder):
    folder = trial_folder("every")
    outcome = go_on(server, folder, [], "--set", "training.save_checkpoint_steps=1")
    assert outcome.exit_code == 0, outcome.said
    assert len(harness.events(folder, "save")) == STEPS
    assert reference.lost(folder) is None
    folder = trial_folder("never")
    outcome = go_on(server, folder, [], "--set", "training.save_checkpoint_steps=null")
    assert outcome.exit_code == 0, outcome.said
    saves = harness.events(folder, "save")
    assert len(saves) <= STEPS // 8  # at the best evaluations and at the end
    assert reference.lost(folder) is None
