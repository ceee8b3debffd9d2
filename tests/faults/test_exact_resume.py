"""Resumed at any step, in any combination of mechanisms, a run ends in the bits of the undisturbed one."""

import itertools
import shutil

import fault_trials
import pytest
from fault_trials import STEPS, files, go_on

PRODUCT = list(itertools.product([False, True], [1, 3], [False, True], [False, True]))
PAIRS = {(False, 1, False, False), (True, 3, True, False), (True, 3, False, True), (False, 3, True, True),
         (True, 1, True, True)}  # fmt: skip  # every two values of two factors meet in one of these


@pytest.mark.parametrize(
    ("recompute", "accumulate", "bf16", "samples"),
    [pytest.param(*row, marks=[] if row in PAIRS else pytest.mark.slow) for row in PRODUCT],
)
def test_resumed_at_every_step(
    server, side_by_side, tmp_path_factory, trials, table, recompute, accumulate, bf16, samples
):
    parent = tmp_path_factory.mktemp("product")
    training = {
        "gradient_checkpointing": recompute, "accumulate_grad_batches": accumulate, "save_checkpoint_steps": 1,
        "mixed_precision": bf16, "precision_dtype": "bf16", "max_checkpoints_to_keep": STEPS,
        "sample_interval_steps": 3 if samples else None,
    }  # fmt: skip
    reference = fault_trials.undisturbed(server, parent, training=training)

    def one(server, step):
        folder = parent / f"from{step}"
        shutil.copytree(reference.folder, folder)
        for other, path in files(folder).items():
            if other > step:
                path.unlink()
        (folder / "promised.txt").write_text(str(step))
        outcome = go_on(server, folder)
        lost = None if outcome.exit_code == 0 else outcome.said
        lost = lost or reference.lost(folder)
        taken = f"_step_{step}.pt at step {step}\n" in outcome.said
        shutil.rmtree(folder)
        return taken, lost

    steps = [
        1 + i
        for i in fault_trials.spread(
            trials(2, 4, STEPS - 1), STEPS - 1, seed=sum(map(ord, str(training)))
        )
    ]
    for taken, lost in side_by_side(one, steps):
        table.add("resume at step k, product of 16 configurations", taken, lost is not None)
        assert taken
        assert lost is None


@pytest.mark.slow
def test_resumed_at_every_step_one_after_the_other(server, reference, trial_folder, table):
    folder = trial_folder("chain")
    every = "training.save_checkpoint_steps=1"
    for step in range(1, STEPS + 1):
        outcome = go_on(
            server,
            folder,
            [("signals", {"phase": "step", "nth": 1, "names": ["SIGTERM"]})],
            "--set",
            every,
        )
        assert outcome.exit_code == 143, outcome.said
        assert max(files(folder)) == step
    assert go_on(server, folder, [], "--set", every).exit_code == 0
    lost = reference.lost(folder)
    table.add("resume after every single step", STEPS, lost is not None, STEPS)
    assert lost is None


def test_saving_at_every_step_equals_saving_at_the_end(server, reference, trial_folder):
    folder = trial_folder("every")
    outcome = go_on(server, folder, [], "--set", "training.save_checkpoint_steps=1")
    assert (outcome.exit_code, outcome.said.count("saved ")) == (0, STEPS)
    assert reference.lost(folder) is None
    folder = trial_folder("never")
    outcome = go_on(server, folder, [], "--set", "training.save_checkpoint_steps=null")
    assert outcome.exit_code == 0
    assert outcome.said.count("saved ") <= STEPS // 8  # at the best evaluations and at the end
    assert reference.lost(folder) is None
