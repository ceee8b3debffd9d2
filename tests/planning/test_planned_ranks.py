"""What a number of ranks comes to."""

from itertools import pairwise

import harness
import pytest
from tiny import V, tiny

from chatgot.planning.counting import Way
from chatgot.planning.machines import machines_named
from chatgot.planning.ranks import CONTEXT, Ranks, Speed
from chatgot.run.passes import first_micro_batch, smaller_size

BOTH = ("ddp", "fsdp")
SPEED = Speed(flops=1e12)


def ranks_of(config, machines="8xH100", room=None, strategies=BOTH, speed=SPEED) -> Ranks:
    way = Way("fp32", "sdpa", 0, False)
    named = machines_named(machines)
    return Ranks(config, V, named, way, "fp32", speed, lambda _: room, strategies)


def test_ddp_sends_gradients_once_around_the_ring():
    ranks = ranks_of(tiny())
    row = ranks.row(4, (0,))
    assert row.strategy == "ddp"
    assert row.sent == 2 * 3 / 4 * ranks.sizes.gradients
    assert row.sending_s == pytest.approx(row.sent / 450e9)


def test_ranks_of_several_nodes_send_over_the_slower_wire():
    row = ranks_of(tiny({"batch_size": 16}), "2x8xH100").row(16, (0,))
    assert row.sending_s == pytest.approx(row.sent / 50e9)


def test_fsdp_gathers_weights_twice_in_each_micro_batch():
    ranks = ranks_of(tiny({"micro_batch_size": 1}), strategies=("fsdp",))
    row = ranks.row(2, (0,))
    assert (row.strategy, row.micro_batches) == ("fsdp", 2)
    assert row.sent == 0.5 * (4 * ranks.sizes.weights + ranks.sizes.gradients)


def test_ddp_sends_each_ranks_share_of_muons_updates_to_all():
    plain = ranks_of(tiny()).row(4, (0,)).sent
    ranks = ranks_of(tiny({"optimizer": "muon"}))
    assert ranks.sizes.muon > 0
    assert ranks.row(4, (0,)).sent == plain + 3 / 4 * 4 * ranks.sizes.muon
    ranks.muon_precision = "bf16"
    assert ranks.row(4, (0,)).sent == plain + 3 / 4 * 2 * ranks.sizes.muon


def test_fsdp_sends_the_rows_of_muons_matrices_there_and_back():
    plain = ranks_of(tiny(), strategies=("fsdp",)).row(4, (0,)).sent
    ranks = ranks_of(tiny({"optimizer": "muon"}), strategies=("fsdp",))
    assert ranks.row(4, (0,)).sent == plain + 3 / 4 * 2 * 4 * ranks.sizes.muon / 4


def test_fsdp_leaves_each_rank_its_share_of_the_weights():
    parts = ranks_of(tiny(), strategies=("fsdp",)).row(4, (0,)).parts
    whole = ranks_of(tiny()).row(4, (0,)).parts
    for name in ("weights", "gradients", "optimizer"):
        assert parts[name] == whole[name] // 4


def test_ranks_without_a_sequence_are_refused():
    assert "at most 4 ranks" in ranks_of(tiny()).row(8, (0,)).problem


def test_fsdp_refuses_shares_that_are_not_equal():
    assert "equal shares" in ranks_of(tiny(), strategies=("fsdp",)).row(3, (0,)).problem


def test_fewer_sequences_at_once_are_taken_where_memory_lacks():
    config = tiny({"batch_size": 64}, max_seq_length=256, d_model=64)
    at_once = ranks_of(config).row(1, (0,))
    assert at_once.sequences == 64
    row = ranks_of(config, room=at_once.memory - 1).row(1, (0,))
    assert (row.sequences, row.problem) == (32, "")


@pytest.mark.parametrize("machines", ["8xH100", "4xcpu"])
def test_fsdp_needs_room_for_whole_weights_at_its_start(machines):
    ranks = ranks_of(tiny({"mixed_precision": True}), machines, strategies=("fsdp",))
    start = ranks._start_of_fsdp(0)
    assert start > ranks.row(4, (0,)).parts["weights"] + ranks.sizes.weights
    fits = ranks_of(ranks.config, machines, room=start, strategies=("fsdp",)).row(4, (0,))
    assert "at its start" not in fits.problem
    tight = ranks_of(ranks.config, machines, room=start - 1, strategies=("fsdp",)).row(4, (0,))
    assert "at its start, with whole weights" in tight.problem


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [(4, [6, 3, 1]), *harness.slow((1, [8, 4, 2, 1]), (2, [7, 3, 1]), (3, [8, 4, 2, 1]))],
)
def test_planned_micro_batches_are_those_that_a_run_takes(ranks, expected):
    """Equally many for all ranks, then smaller by the rule of a step that ran out of memory."""
    config = tiny({"batch_size": 8, "accumulate_grad_batches": 3, "micro_batch_size": 8})
    S = config.training.sequences_per_step
    assert expected[0] == first_micro_batch(config.training, ranks)
    for before, after in pairwise(expected):
        assert after == smaller_size(before, S, ranks)
    whole = ranks_of(config, strategies=("ddp",))
    for sequences in expected:
        room = whole.parts(ranks, "ddp", sequences, 0)
        row = ranks_of(config, room=sum(room.values()), strategies=("ddp",)).row(ranks, (0,))
        assert (row.sequences, row.problem) == (sequences, "")
        assert row.micro_batches == -(-S // sequences) // ranks


def test_recomputation_is_taken_only_where_memory_lacks():
    config = tiny({"batch_size": 1}, max_seq_length=512, n_layers=6)
    plain = ranks_of(config).row(1, (0, 1))
    assert plain.every == 0
    tight = ranks_of(config, room=plain.memory - 1).row(1, (0, 1))
    assert (tight.every, tight.problem) == (1, "")
    assert tight.compute_s == pytest.approx(plain.compute_s * 4 / 3)


def test_what_does_not_fit_says_what_it_needs():
    assert "needs" in ranks_of(tiny(), room=CONTEXT).row(1, (0, 1)).problem


@pytest.mark.parametrize(("threads", "seconds"), [(2, 8.0), (1, 4.0)])
def test_processes_that_share_cores_do_not_multiply_them(threads, seconds):
    speed = Speed(seconds_per_sequence=1.0, threads=threads, cores=2)
    row = ranks_of(tiny({"batch_size": 8}), "2xcpu", speed=speed).row(2, (0,))
    assert row.compute_s == pytest.approx(seconds)
