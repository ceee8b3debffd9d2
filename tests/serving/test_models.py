"""Which models can be asked, and when they are loaded and let go."""

import gc
import weakref

import pytest
import served

from chatgot.errors import CheckpointRejected
from chatgot.serving import models as models_module
from chatgot.serving.api_errors import ApiError
from chatgot.serving.models import Catalogue

OLDER = "tiny_20240102-030405"
OTHER = "other_20230102-030405"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(models_module, "LOOK_AGAIN_S", 0.0)
    served.save_model(tmp_path / "checkpoints")
    return tmp_path


def ids(server: served.Server) -> list[str]:
    return [model["id"] for model in server.get("/v1/models").json()["data"]]


def test_a_run_is_found_by_its_id_and_by_its_configuration(folder):
    checkpoints = folder / "checkpoints"
    served.save_model(checkpoints, run_id=OLDER)
    served.save_model(checkpoints, run_id=OTHER)
    catalogue = Catalogue(checkpoints, f"{OTHER}:latest")
    latest = f"{served.RUN_ID}:latest"
    for name in (latest, served.RUN_ID, "tiny", "tiny:latest", f"{served.RUN_ID}:best"):
        assert catalogue.find(name).id == latest
    assert catalogue.find(None).id == f"{OTHER}:latest"
    assert catalogue.find(OLDER).id == f"{OLDER}:latest"
    listed = [model.id for model in catalogue.models()]
    assert listed == [f"{OTHER}:latest", latest, f"{OLDER}:latest"]
    for name in ("tin", "tiny:", "", "tiny_20200102-030405", f"{OTHER}:worst"):
        with pytest.raises(ApiError) as raised:
            catalogue.find(name)
        assert raised.value.status == 404


def test_a_file_elsewhere_is_served_by_its_name(folder, tmp_path):
    path = served.save_model(tmp_path / "elsewhere", step=7, run_id=OTHER)
    catalogue = Catalogue(folder / "checkpoints", path.name, path)
    assert catalogue.find(None).path == path
    assert catalogue.find(path.name).which == "file"
    assert catalogue.models()[0].id == path.name
    with pytest.raises(ApiError):
        catalogue.find(OTHER)


def test_a_newer_checkpoint_is_loaded_when_it_is_there(folder):
    with served.Server(folder) as server:
        first = server.complete()
        served.save_model(folder / "checkpoints", step=3, seed=9)
        second = server.complete()
        assert (first["system_fingerprint"], second["system_fingerprint"]) == (
            f"{served.RUN_ID}_step_0",
            f"{served.RUN_ID}_step_3",
        )
        assert first["choices"][0]["text"] != second["choices"][0]["text"]
        (about,) = server.get("/v1/models").json()["data"]
        assert about["chatgot"]["step"] == 3
        assert about["chatgot"]["loaded"]


def test_a_file_that_took_anothers_place_is_loaded_again(folder, tmp_path):
    path = served.save_model(tmp_path / "elsewhere", step=1, run_id=OTHER)
    mine = path.rename(path.with_name("mine.pt"))
    with served.Server(folder, default="mine.pt", file=mine) as server:
        first = server.complete()
        other = served.save_model(tmp_path / "later", step=2, run_id=OTHER, seed=9)
        other.replace(mine)
        second = server.complete()
        assert (first["system_fingerprint"], second["system_fingerprint"]) == (
            f"{OTHER}_step_1",
            f"{OTHER}_step_2",
        )
        assert server.get("/v1/models").json()["data"][0]["chatgot"]["step"] == 2
        assert len(server.models._loaded) == 1


def test_a_damaged_newer_checkpoint_is_passed_over(folder):
    with served.Server(folder) as server:
        first = server.complete()
        (folder / "checkpoints" / f"{served.RUN_ID}_step_9.pt").write_bytes(b"half")
        assert server.complete()["choices"] == first["choices"]


def test_a_removed_checkpoint_goes_on_until_another_is_there(folder):
    """Training removes files that are still being used."""
    with served.Server(folder) as server:
        first = server.text()
        served.save_model(folder / "checkpoints", step=3, seed=9)
        (folder / "checkpoints" / f"{served.RUN_ID}_step_0.pt").unlink()
        assert server.text() != first
        assert ids(server) == [f"{served.RUN_ID}:latest"]


def test_two_models_stay_loaded_and_the_one_asked_longest_ago_goes(folder):
    for run_id in (OLDER, OTHER):
        served.save_model(folder / "checkpoints", run_id=run_id)
    with served.Server(folder) as server:
        server.text()
        (engine,) = [weakref.ref(one.engine) for one in server.models._loaded.values()]
        server.text(model=OLDER)
        server.text(model=OTHER)
        data = server.get("/v1/models").json()["data"]
        loaded = {model["id"] for model in data if model["chatgot"]["loaded"]}
        assert loaded == {f"{OLDER}:latest", f"{OTHER}:latest"}
        gc.collect()
        assert engine() is None


def test_no_model_at_all_is_an_error_of_its_own(tmp_path):
    server = served.Server(tmp_path)
    with pytest.raises(CheckpointRejected, match="does not exist"):
        served.together(server.models.load_default())
    server.socket.close()
    server.batcher.close()
