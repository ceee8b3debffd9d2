"""A launcher that starts several copies is noticed by the variables that it sets."""

import pytest

from chatgot.machine.launched_copies import launched_copies


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"WORLD_SIZE": "2", "RANK": "0"}, ("WORLD_SIZE", 2)),
        ({"SLURM_STEP_NUM_TASKS": "4"}, ("SLURM_STEP_NUM_TASKS", 4)),
        ({"SLURM_NTASKS": "4"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "16"}, ("OMPI_COMM_WORLD_SIZE", 16)),
        ({"WORLD_SIZE": "", "PMI_SIZE": "3"}, ("PMI_SIZE", 3)),
        ({"WORLD_SIZE": "many"}, None),
        ({"WORLD_SIZE": "²"}, None),
    ],
)
def test_a_launchers_count_of_copies_is_read_from_its_variable(environ, expected):
    assert launched_copies(environ) == expected
