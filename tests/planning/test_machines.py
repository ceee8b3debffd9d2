"""The words of --machines and --price_per_hour."""

import pytest

from chatgot.planning.machines import KINDS, machines_named, price_named


@pytest.mark.parametrize(
    ("text", "nodes", "per_node", "name"),
    [
        ("8xH100", 1, 8, "8xH100"),
        ("4x8xh100", 4, 8, "4x8xH100"),
        ("1xcpu", 1, 1, "1xcpu"),
        ("2xA100-40GB", 1, 2, "2xA100-40GB"),
    ],
)
def test_machines_are_read_with_nodes_and_devices(text, nodes, per_node, name):
    machines = machines_named(text)
    assert (machines.nodes, machines.per_node, machines.name) == (nodes, per_node, name)


@pytest.mark.parametrize("text", ["", "H100", "8xV9", "0x8xH100", "8x", "8xH100x", "-1xcpu"])
def test_machines_that_do_not_exist_are_refused(text):
    with pytest.raises(ValueError, match="expected"):
        machines_named(text)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1xcpu", [1]),
        ("8xH100", [1, 2, 4, 8]),
        ("6xH100", [1, 2, 4, 6]),
        ("3x8xH100", [1, 2, 4, 8, 16, 24]),
    ],
)
def test_numbers_of_ranks_double_up_to_all(text, numbers):
    assert machines_named(text).numbers_of_ranks() == numbers


def test_price_is_of_each_gpu_or_of_whole_machines():
    machines = machines_named("4x8xH100")
    assert price_named("2.5").of(machines, 12) == 30
    assert price_named("20/machine").of(machines, 12) == 40  # two machines


@pytest.mark.parametrize("text", ["", "free", "-1", "2/gpu", "1e3"])
def test_price_that_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match="expected dollars"):
        price_named(text)


def test_every_kind_sends_faster_within_a_node():
    for kind in KINDS.values():
        assert kind.in_node > kind.between_nodes
        assert kind.bf16_flops > kind.fp32_flops
