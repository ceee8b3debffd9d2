"""An evaluation adds up what its batches give, and waits for the device once."""

import parts
import pytest
import torch
from memory_limit import never

from chatgot.data.windows import NOT_LEARNED
from chatgot.training.evaluation import evaluate


def test_evaluation_is_the_mean_over_targets_and_waits_once(monkeypatch):
    """The batches have 24, 8 and 5 targets that count."""
    run = parts.run()
    starts = run.train_windows.starts(0, 8)
    batches = [run.train_windows.batch(starts[:3]), run.train_windows.batch(starts[3:4])]
    x, y = run.train_windows.batch(starts[4:5])
    batches.append((x, torch.where(torch.arange(8) < 3, NOT_LEARNED, y)))
    with torch.no_grad():
        losses = [run.model.eval()(x, y)[1].item() for x, y in batches]
    run.model.train()
    expected = (losses[0] * 24 + losses[1] * 8 + losses[2] * 5) / 37
    waits: list[str] = []
    for name in ("item", "__int__", "__float__", "__bool__", "tolist"):
        real = getattr(torch.Tensor, name)

        def noted(tensor, name=name, real=real):
            waits.append(name)
            return real(tensor)

        monkeypatch.setattr(torch.Tensor, name, noted)
    measured = evaluate(run.model, batches, parts.CPU, "fp32", never)
    monkeypatch.undo()
    assert measured.loss == expected
    assert measured.batches == list(zip(losses, (24, 8, 5), strict=True))
    assert waits == ["tolist", "tolist"]  # both at the end
    assert run.model.training


def test_stopped_evaluation_gives_no_loss():
    run = parts.run()
    batches = [run.train_windows.batch(run.train_windows.starts(0, 2))] * 2
    answers = iter([False, True])
    assert evaluate(run.model, batches, parts.CPU, "fp32", lambda: next(answers)) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_gives_the_same_bits_each_time(precision):
    run = parts.run(precision=precision)
    losses = {
        evaluate(run.model, run.val_windows.spread(8, 4), parts.CPU, precision, never).loss
        for _ in range(2)
    }
    assert len(losses) == 1
