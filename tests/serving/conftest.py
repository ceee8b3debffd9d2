"""One server for all tests of a module that leave it as it is."""

from collections.abc import Iterator

import pytest
import served


# not for the session: a later test that moves the clock would stop the server's loop
@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[served.Server]:
    folder = tmp_path_factory.mktemp("served")
    served.save_model(folder / "checkpoints")
    with served.Server(folder) as running:
        yield running
