"""One server for all tests that leave it as it is."""

from collections.abc import Iterator

import pytest
import served


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[served.Server]:
    folder = tmp_path_factory.mktemp("served")
    served.save_model(folder / "checkpoints")
    with served.Server(folder) as running:
        yield running
