"""A chat in a zip is read as one in a folder is."""

import json
import zipfile

import pytest

from chatgot.data.preparation.prepare import Preparation, prepare

USERS = [
    {"id": "U00000001", "team_id": "T1", "profile": {"display_name": "Ann"}},
    {"id": "U00000002", "team_id": "T1", "real_name": "Ben", "is_bot": False},
]
DAY = [
    {
        "type": "message",
        "user": "U00000001",
        "text": "Hello <@U00000002>",
        "ts": "1700000000.000100",
    },
    {"type": "message", "user": "U00000002", "text": "Hello", "ts": "1700000060.000100"},
]


@pytest.mark.parametrize("top", ["", "export/"])
def test_people_of_a_zipped_slack_export_have_their_names(tmp_path, top):
    with zipfile.ZipFile(tmp_path / "slack.zip", "w") as archive:
        archive.writestr(f"{top}general/2023-11-14.json", json.dumps(DAY))
        archive.writestr(f"{top}users.json", json.dumps(USERS))
    output = tmp_path / "out.txt"
    prepare(Preparation((str(tmp_path / "slack.zip"),)), output)
    assert output.read_text(encoding="utf-8") == "Ann:\nHello @Ben\n\nBen:\nHello\n\n"
