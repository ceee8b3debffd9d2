"""The wording of the log's lines: the end of a run, and how a step is split."""

import parts
import pytest

from chatgot.training.log_lines import end_line, postfix


@pytest.mark.parametrize(
    ("precision", "words"),
    [("fp32", "fp16, then fp32"), ("bf16", "fp16, then bf16"), ("fp16", "fp16 throughout")],
)
def test_the_last_line_has_steps_skips_rewinds_and_precisions(precision, words):
    run = parts.run()
    run.state.progress.global_step = 1040
    run.state.health.skips = 2
    run.state.health.rewinds = 1
    run.state.modes.asked_precision = "fp16"
    run.state.modes.precision = precision
    assert end_line(run) == f"1,040 steps, 2 skipped, 1 rewinds, {words}"


def test_the_progress_bar_shows_how_a_step_is_split():
    run = parts.run(training={"batch_size": 32, "accumulate_grad_batches": 1})
    run.state.progress.train_loss = 1.0
    run.state.micro_batch.size = 16
    assert postfix(run).endswith(", 16x2")
    run.state.micro_batch.size = 12
    assert postfix(run).endswith(", 12x3")
