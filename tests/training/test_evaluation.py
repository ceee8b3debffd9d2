"""An evaluation adds up what its batches give, and waits for the device once."""

from collections.abc import Iterable

import parts
import psutil
import pytest
import torch
import torch.nn.functional as F
from memory_limit import never
from thread_ranks import ThreadRanks, by_ranks
from torch import Tensor, nn

from chatgot.data.windows import NOT_LEARNED, Batch
from chatgot.training import evaluation
from chatgot.training.evaluation import Measured, Turns, evaluate, halving_batches


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
    measured = evaluate(run.model, batches, torch.device("cuda"), "fp32", never)
    monkeypatch.undo()
    assert measured.loss == expected
    assert measured.batches == list(zip(losses, (24, 8, 5), strict=True))
    assert waits == ["tolist", "tolist"]  # a card is waited for at the end, for both
    assert run.model.training
    assert evaluate(run.model, batches, parts.CPU, "fp32", never) == measured


class WideHead(nn.Module):
    """Makes logits of 12 MB for each batch, as a model with many subwords does."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.zeros(x.numel(), 2048, dtype=torch.bfloat16)
        return logits, F.cross_entropy(logits.float(), y.flatten())


def test_memory_does_not_grow_with_the_number_of_batches():
    x = torch.zeros(24, 64, dtype=torch.long)
    process = psutil.Process()

    def grown_by(batches: int) -> int:
        before = process.memory_info().rss
        evaluate(WideHead(), [(x, x)] * batches, parts.CPU, "fp32", never)
        return process.memory_info().rss - before

    grown_by(20)
    assert grown_by(100) < 200 << 20


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


# Several ranks


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("sequences", [4, 6, 10])
def test_ranks_measure_what_one_process_does(size, sequences):
    """In the same bits, also where the last round has too few batches for all."""
    batches = [(i + 0.1, 3 + i) for i in range(sequences // 2)]  # loss and targets of each
    alone = evaluation._mean(batches)

    def measure(ranks: ThreadRanks) -> tuple[int, Measured]:
        turns = Turns(batches, ranks)
        own = list(turns)
        return len(own), turns.together(evaluation._mean(own))

    counts, found = zip(*by_ranks(size, measure), strict=True)
    assert set(counts) == {-(-len(batches) // size)}  # nobody waits for a rank without a batch
    assert set(map(repr, found)) == {repr(alone)}


def test_no_batch_is_measured_twice_where_they_go_up():
    taken = by_ranks(2, lambda ranks: list(Turns("abcd", ranks)))
    assert taken == [["a", "c"], ["b", "d"]]


def test_out_of_memory_on_one_rank_halves_the_batches_of_all():
    runs = [parts.run() for _ in range(2)]

    def batches(size: int) -> list[Batch]:
        return [(torch.zeros(size, 8), torch.zeros(size, 8))] * 2

    def evaluate_on(ranks: ThreadRanks) -> int | None:
        def measure(own: Iterable[Batch]) -> int:
            for x, _ in own:
                if len(x) == 4 and ranks.rank == 1:
                    raise MemoryError
            return len(x)

        run = runs[ranks.rank]
        run.ranks = ranks
        return halving_batches(run, batches, measure, None, words="evaluating", tokens=0)

    assert by_ranks(2, evaluate_on) == [2, 2]
    assert [run.state.micro_batch.eval_size for run in runs] == [2, 2]
