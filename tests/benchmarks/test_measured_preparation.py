"""The benchmark of preparing texts: its made-up files are what they seem, and it measures."""

import pytest

from benchmarks import preparation
from benchmarks.made_up_files import KINDS, make_file
from benchmarks.one_preparation import measure
from chatgot.data.preparation.prepare import Preparation, prepare

READ_AS = {
    "prose": "plain text",
    "play": "plain text",
    "transcript": "transcript with speakers",
    "whatsapp": "WhatsApp chat",
    "telegram": "Telegram JSON",
}


@pytest.mark.parametrize("kind", KINDS)
def test_made_up_file_has_its_size_and_is_read_as_its_kind(kind, tmp_path):
    path = tmp_path / f"made_up.{preparation.ENDINGS.get(kind, 'txt')}"
    size = make_file(kind, path, 40_000)
    assert 40_000 <= size == path.stat().st_size < 42_000
    prepared = prepare(Preparation((str(path),)), None)
    assert not prepared.refusals()
    assert prepared.read[0].kind == READ_AS.get(kind, prepared.read[0].kind)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert len({*lines}) > len(lines) / 4, "no two lines are alike"


@pytest.mark.parametrize(("task", "made"), [("characters", "characters"), ("bpe", "subwords")])
def test_encoding_is_measured(task, made, tmp_path):
    text = tmp_path / "text.txt"
    make_file("prose", text, 20_000)
    figures = measure(task, text, tmp_path / "made")
    assert made in str(figures["made"])
    assert figures["share_of_sha256"] > 0


def test_preparing_is_measured_with_its_memory_in_a_process_of_its_own(tmp_path):
    text = tmp_path / "text.txt"
    make_file("play", text, 20_000)
    figures = preparation.measured("play", "prepare", text, tmp_path)
    assert figures["play_made"] == "plain text"
    assert figures["play_mb_per_cpu_s"] > 0
    assert 10 < figures["play_peak_mib"] < 1_000
