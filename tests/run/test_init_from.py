"""`--init_from`: a new run starts with the matching weights of another run.

Rows of the embedding and the head are matched by the text of their token, in both formats.
"""

import re
from pathlib import Path
from typing import Any

import harness
import parts
import pytest
import torch

from chatgot.data.vocabulary import END_OF_TEXT

# one step that leaves the weights as they are
STILL = {"max_steps": 1, "learning_rate": 1e-30, "min_learning_rate": 0, "weight_decay": 0}
ROWS = ("token_embedding.weight", "head.weight")  # (V, C)
NAME = re.compile(r"'(?:[^'\\]|\\.)+'")  # the repr of a token
FORMATS = [1, 2]


def as_format(folder: Path, format_version: int) -> Path:
    """Return the last checkpoint of a run, converted to a format.

    In format 1 the vocabulary is a string, ids begin at 0, and there is no end-of-text token.
    """
    path = harness.checkpoints(folder)[4]
    if format_version == 2:
        return path
    content = harness.load(path)
    weights = content["model_state_dict"]
    for name in ROWS:
        weights[name] = weights[name][1:].clone()
    content["vocabulary"] = "".join(content["vocabulary"][1:])
    content["format_version"] = 1
    older = folder / "older.pt"
    parts.forge(older, content)
    return older


def start_from(folder: Path, path: Path, name: str = "begun", **sections: Any) -> int:
    """Start a run from a checkpoint and do one step, which changes no weight."""
    harness.write_config(folder, name=name, training=STILL, **sections)
    return harness.train_here(folder, "--config", f"{name}.yaml", "--init_from", str(path))


def checkpoint_of(folder: Path, name: str = "begun") -> dict[str, Any]:
    (path,) = (folder / "checkpoints").glob(f"{name}_*_step_1.pt")
    return harness.load(path)


def rows_by_token(content: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    return dict(zip(content["vocabulary"], content["model_state_dict"][name], strict=True))


def mean_row(rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what the row of a new token begins with."""
    return torch.stack(list(rows.values())).double().mean(dim=0).float()


def new_tokens(said: str) -> set[str]:
    """Return the tokens that a run has listed as new."""
    lines = [line for line in said.splitlines() if "their rows are new" in line]
    assert len(lines) <= 1
    return set().union(*(NAME.findall(line.rpartition(": ")[2]) for line in lines))


def test_init_from_takes_matching_weights_and_lists_all_others(trained, capsys):
    path = harness.checkpoints(trained)[4]
    assert start_from(trained, path, model={"d_hid": 40}) == 0
    words = "layers.0.mlp.up.weight has shape (24, 16) (expected (40, 16))"
    assert words in capsys.readouterr().err
    old = harness.load(path)["model_state_dict"]
    new = checkpoint_of(trained)["model_state_dict"]
    assert harness.same(old["layers.0.attention.qkv.weight"], new["layers.0.attention.qkv.weight"])


def test_init_from_says_of_a_weight_with_nan_that_and_no_shape(trained, capsys):
    weights = harness.load(harness.checkpoints(trained)[4])["model_state_dict"]
    name = "layers.0.mlp.up.weight"
    weights[name] = torch.full_like(weights[name], torch.nan)
    torch.save(weights, trained / "foreign.pt")
    assert start_from(trained, trained / "foreign.pt") == 0
    said = capsys.readouterr().err
    assert f"{name} contains NaN or infinity: left out" in said
    assert "has shape" not in said


def test_init_from_a_file_without_matching_weights_is_exit_3(trained, capsys):
    path = harness.checkpoints(trained)[4]
    other = {"d_model": 20, "n_layers": 1, "d_hid": 8, "max_seq_length": 8}
    assert start_from(trained, path, model=other) == 3
    assert "no weight matches" in capsys.readouterr().err


# Format 1


@pytest.mark.parametrize("tied", [True, False])
def test_a_format_1_file_gives_each_character_its_row(tmp_path, tied, capsys):
    """The end-of-text token, which format 1 does not know, is new and listed."""
    model = {"tie_embeddings": tied}
    harness.write_config(tmp_path, training={"max_steps": 4}, model=model)
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    trained_run = harness.load(harness.checkpoints(tmp_path)[4])
    path = as_format(tmp_path, 1)
    capsys.readouterr()
    assert start_from(tmp_path, path, model=model) == 0
    assert new_tokens(capsys.readouterr().err) == {repr(END_OF_TEXT)}
    begun = checkpoint_of(tmp_path)
    for name in ROWS:
        old = rows_by_token(trained_run, name)
        new = rows_by_token(begun, name)
        assert new.keys() == old.keys()
        for token in new.keys() - {END_OF_TEXT}:
            assert torch.equal(new[token], old[token]), token
        assert not torch.equal(new[END_OF_TEXT], old.pop(END_OF_TEXT))
        assert torch.equal(new[END_OF_TEXT], mean_row(old))


def test_a_format_1_file_gives_all_other_weights_unchanged(trained):
    weights = harness.load(harness.checkpoints(trained)[4])["model_state_dict"]
    assert start_from(trained, as_format(trained, 1)) == 0
    begun = checkpoint_of(trained)["model_state_dict"]
    for name in weights.keys() - set(ROWS):
        assert torch.equal(begun[name], weights[name]), name


@pytest.mark.parametrize("name", ["older.pt", "tiny_20250102-030405_step_4.pt"])
def test_resuming_a_format_1_file_is_refused_in_one_line(trained, name, capsys):
    path = as_format(trained, 1)
    older = path.rename(path.with_name(name))
    for newer in harness.checkpoints(trained).values():
        newer.unlink()
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert harness.train_here(trained, "--config", "tiny.yaml", "--resume_from", str(older)) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert "--init_from" in line
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


# Another text


@pytest.mark.parametrize("format_version", FORMATS)
def test_a_text_with_other_characters_gets_the_rows_of_known_ones(trained, format_version, capsys):
    """Rows of unknown characters are the mean of the old rows, and listed.

    Rows that only the old text had are dropped.
    """
    path = as_format(trained, format_version)
    text = (trained / "text.txt").read_text().replace("q", "é").replace("KING", "K§NG")
    (trained / "other.txt").write_text(text, encoding="utf-8")
    capsys.readouterr()
    assert start_from(trained, path, data={"path": "other.txt"}) == 0
    expected = {"'é'", "'§'"}
    if format_version == 1:
        expected.add(repr(END_OF_TEXT))
    assert new_tokens(capsys.readouterr().err) == expected
    begun = checkpoint_of(trained)
    trained_run = harness.load(harness.checkpoints(trained)[4])
    assert "q" in trained_run["vocabulary"]
    assert "q" not in begun["vocabulary"]
    new = rows_by_token(begun, ROWS[0])
    old = rows_by_token(trained_run, ROWS[0])
    if format_version == 1:
        del old[END_OF_TEXT]
    mean = mean_row(old)
    for token, row in new.items():
        assert torch.equal(row, mean if repr(token) in expected else old[token]), token
