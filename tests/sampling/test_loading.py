"""A model from its checkpoint file alone: the run's weights, ready to talk."""

import math

import parts
import pytest
import torch

from chatgot import __version__
from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.config import Config
from chatgot.errors import CheckpointRejected, OtherFormat
from chatgot.model.gpt import evaluating, model_without_weights
from chatgot.sampling.loading import load_model
from chatgot.sampling.speakers import Speaker

ANN = {"name": "ANN", "lines": 5, "share": 1.0, "partner": ""}


def refused(path, *words: str) -> None:
    with pytest.raises(CheckpointRejected) as raised:
        load_model(path, parts.CPU)
    message = str(raised.value)
    assert all(word in message for word in (str(path), *words)), message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("architecture", ["gpt", "modern"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_loaded_model_computes_what_the_run_does(tmp_path, architecture, tied):
    keys = {"architecture": architecture, "tie_embeddings": tied, "dropout": 0.5}
    run = parts.run(model=keys)
    model = load_model(parts.checkpoint_file(tmp_path, run), parts.DEVICE).model
    assert not model.training
    assert (model.head.weight is model.token_embedding.weight) == tied
    assert not any(parameter.requires_grad for parameter in model.parameters())
    x = torch.arange(8, device=parts.DEVICE)[None]
    with evaluating(run.model):
        expected, _ = run.model(x)
    assert torch.equal(model(x)[0], expected)


def test_a_loaded_model_has_all_that_is_needed_to_talk_to_it(tmp_path):
    run = parts.run()
    run.state.progress.global_step = run.state.progress.position = 3
    run.state.marks.val_loss = 2.5
    run.speakers = [Speaker(**ANN)]
    path = parts.checkpoint_file(tmp_path, run)
    loaded = load_model(path, parts.CPU)
    assert loaded.vocabulary == run.vocabulary
    assert loaded.speakers == (Speaker(**ANN),)
    assert (loaded.run_id, loaded.step, loaded.val_loss) == (parts.RUN_ID, 3, 2.5)
    assert loaded.path == path
    assert isinstance(loaded.config, Config)
    assert loaded.config == run.config
    assert (loaded.data_sha256, loaded.data_tokens) == (run.tokens.text_sha256, 2000)
    assert loaded.versions["chatgot"] == __version__
    assert loaded.versions["torch"] == torch.__version__


def test_a_file_without_speakers_size_and_loss_loads_without_them(tmp_path):
    content = parts.run().checkpoint()
    del content["speakers"]
    del content["data_tokens"]
    path = tmp_path / "older.pt"
    save_checkpoint(path, content)
    loaded = load_model(path, parts.CPU)
    assert loaded.speakers == ()
    assert loaded.data_tokens is None
    assert loaded.val_loss is None


@pytest.mark.parametrize(
    "state", [{}, {"marks": 3}, {"marks": {"val_loss": "low"}}, {"marks": {"val_loss": math.inf}}]
)
def test_a_file_with_odd_marks_loads_without_a_loss(tmp_path, state):
    path = tmp_path / "any.pt"
    parts.forge(path, {**parts.run().checkpoint(), "state": state})
    assert load_model(path, parts.CPU).val_loss is None


def test_a_damaged_or_missing_file_is_refused_in_one_line(tmp_path):
    path = parts.checkpoint_file(tmp_path, parts.run())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(path, "damaged")
    refused(tmp_path / "none.pt", "cannot be opened")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    content = parts.copied(parts.run().checkpoint())
    content["model_state_dict"]["norm.weight"][0] = float("nan")
    path = tmp_path / "any.pt"
    parts.forge(path, content)
    refused(path, "norm.weight", "NaN")


@pytest.mark.parametrize(
    ("section", "change", "word"),
    [
        ("model", {"d_model": 32}, "has shape"),
        ("model", {"n_layers": 3}, "is missing"),
        ("model", {"n_layers": 1}, "is not in this model"),
        ("model", {"colour": "red"}, "model.colour"),
        ("model", {"d_model": "wide"}, "model.d_model"),
    ],
)
def test_a_file_that_does_not_fit_itself_is_refused(tmp_path, section, change, word):
    content = parts.run().checkpoint()
    content["config"] = {**content["config"], section: content["config"][section] | change}
    path = tmp_path / "any.pt"
    parts.forge(path, content)
    refused(path, word)


def test_a_file_whose_vocabulary_does_not_fit_its_weights_is_refused(tmp_path):
    content = parts.run().checkpoint()
    path = tmp_path / "any.pt"
    parts.forge(path, {**content, "vocabulary": [*content["vocabulary"], "z"]})
    refused(path, "token_embedding.weight has shape")


def test_another_format_is_refused(tmp_path):
    path = tmp_path / "any.pt"
    parts.forge(path, {**parts.run().checkpoint(), "format_version": 1})
    with pytest.raises(OtherFormat):
        load_model(path, parts.CPU)


def test_a_model_without_weights_draws_nothing():
    before = torch.get_rng_state()
    cfg = parts.config(model={"d_model": 512, "n_layers": 8}).model
    model = model_without_weights(cfg, 80)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.is_meta for parameter in model.parameters())
