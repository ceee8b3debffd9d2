"""What a run began from, by its folder: a YAML, or the text that a YAML was written for."""

import json
import os
from pathlib import Path

import pytest

from chatgot.logs.origins import origin, yaml_that_began

RUN_ID = "my_text_20250102-030405"


def write_run(folder: Path, yaml: Path, run_id: str = RUN_ID) -> Path:
    run_dir = folder / run_id
    run_dir.mkdir(parents=True)
    (run_dir / "run.json").write_text(json.dumps({"config_path": str(yaml)}))
    return run_dir


def test_a_yaml_elsewhere_is_the_origin(tmp_path):
    yaml = tmp_path / "my_text.yaml"
    yaml.write_text("data:\n  path: /a/my_text.txt\n")
    assert origin(write_run(tmp_path, yaml)) == str(yaml)


def test_a_yaml_in_a_runs_folder_stands_for_its_text(tmp_path):
    """Also where another run was begun with it."""
    yaml = tmp_path / RUN_ID / "my_text.yaml"
    first = write_run(tmp_path, yaml)
    second = write_run(tmp_path, yaml, "my_text_20250102-030406")
    yaml.write_text("data:\n  path: /a/my_text.txt\n")
    assert origin(first) == origin(second) == "/a/my_text.txt"


def test_a_yaml_that_moved_with_its_runs_folder_is_found(tmp_path):
    old = tmp_path / "old" / RUN_ID / "my_text.yaml"
    run_dir = write_run(tmp_path / "new", old)
    assert yaml_that_began(run_dir) == str(old)
    (run_dir / "my_text.yaml").write_text("data:\n  path: /a/my_text.txt\n")
    assert yaml_that_began(run_dir) == str(run_dir / "my_text.yaml")
    assert origin(run_dir) == "/a/my_text.txt"


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"data: 5", b"data:\n  path: 5", b"data:\n  path: [", b"\xff", b"a: " * 9999],
)
def test_a_damaged_yaml_stands_for_itself(tmp_path, content):
    yaml = tmp_path / RUN_ID / "my_text.yaml"
    run_dir = write_run(tmp_path, yaml)
    yaml.write_bytes(content)
    assert origin(run_dir) == str(yaml)


def test_a_pipe_in_a_yamls_place_is_not_read(tmp_path):
    yaml = tmp_path / RUN_ID / "my_text.yaml"
    run_dir = write_run(tmp_path, yaml)
    os.mkfifo(yaml)
    assert origin(run_dir) == str(yaml)
