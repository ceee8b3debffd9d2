"""The README.md of an export: what it says of the model, and what it must not say."""

from dataclasses import replace
from pathlib import Path

import exported
import pytest
import yaml

from chatgot import __version__
from chatgot.config_file import load_config
from chatgot.data.corpus import DEFAULT_TEXT_SHA256
from chatgot.exchange.model_card import model_card
from chatgot.exchange.plain_safetensors import SAFETENSORS
from chatgot.exchange.proof import Proof, Rounding
from chatgot.sampling.loading import LoadedModel
from chatgot.shipped import recipes_folder

PROOF = Proof(3, 85, "held-out text", 1.5e-6, 12.25, Rounding(0.01, 0.0002))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("folder_of_the_text")
    found = exported.loaded(folder, architecture="modern", n_head=4, n_kv_head=2)
    assert {speaker.name for speaker in found.speakers} == {"KING", "QUEEN", "FOOL"}
    return replace(found, val_loss=1.23456, step=1234)


def card(loaded: LoadedModel, remarks: tuple[str, ...] = ()) -> str:
    return model_card(
        loaded, SAFETENSORS, "bf16", Path("/a/temporary folder"), PROOF, list(remarks)
    )


def test_front_matter_is_what_a_page_understands_and_names_no_license(loaded):
    _, front, _ = card(loaded).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "chatgot",
        "pipeline_tag": "text-generation",
        "tags": ["chatgot", "character-level"],
    }


def test_card_says_what_the_model_is_and_how_it_came_about(loaded):
    text = card(loaded, ["a remark of the format"])
    for part in (
        f"# {exported.RUN_ID}\n",
        f"| parameters | {loaded.model.parameter_count():,} |",
        "| heads | 4 of 4, 2 of keys and values |",
        "| context | 32 tokens |",
        f"SHA-256 `{loaded.data_sha256}`, 3,000 tokens",
        "| step | 1,234 |",
        f"| held-out loss | 1.2346 nats/token, {loaded.val_bits_per_byte:.4f} bits/byte |",
        f"| trained with | chatgot {__version__}, torch 2",
        "weights = load_file('model.safetensors')",
        *(f"- {line}" for line in PROOF.lines()),
        "- a remark of the format",
    ):
        assert part in text, part


def test_card_has_nothing_of_the_text_no_path_and_two_names_only(loaded, tmp_path):
    config = loaded.config.model_copy(
        update={
            "sampling": loaded.config.sampling.model_copy(update={"prompts": ["SECRET:\n"]}),
            "paths": loaded.config.paths.model_copy(update={"logs": "/secret/logs"}),
        }
    )
    text = card(replace(loaded, config=config))
    assert "secret" not in text.lower()
    assert "folder_of_the_text" not in text
    assert "temporary" not in text
    assert exported.TEXT not in text
    assert str(loaded.path.parent) not in text
    named = [speaker.name for speaker in loaded.speakers if f"{speaker.name}:" in text]
    assert len(named) == 2
    words = loaded.path.parent.parent.joinpath(exported.TEXT).read_text().split("\n")
    lines = {line for line in words if len(line.split()) > 2}
    assert lines
    assert not any(line in text for line in lines)


def test_settings_in_the_card_repeat_the_run(loaded, tmp_path):
    text = card(loaded)
    assert "chatgot train --config tiny.yaml --set data.path=TEXT" in text
    path = tmp_path / "tiny.yaml"
    path.write_text(text.partition("```yaml\n")[2].partition("```")[0])
    again, _ = load_config(path, [f"data.path={loaded.config.data.path}"])
    assert again.model == loaded.config.model
    assert again.training == loaded.config.training
    assert again.data == loaded.config.data


def card_with(loaded, **data) -> str:
    section = loaded.config.data.model_copy(update=data)
    return card(replace(loaded, config=loaded.config.model_copy(update={"data": section})))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "; the last 10 % were held out |"),
        ({"path": ["a", "b"]}, "; the last 10 % of each of its 2 sources were held out |"),
        ({"split": "documents"}, "; about 10 % of its documents, chosen by their content, were"),
        ({"replay": 0.3}, "| old text | 30 % of what it trained on is text of the model before it"),
    ],
)
def test_card_says_what_was_held_out_and_what_was_replayed(loaded, data, words):
    assert words in card_with(loaded, **data)


def test_card_of_a_mixture_names_no_file_and_can_be_repeated(loaded, tmp_path):
    paths = ["/secret/one.txt", "secret/two", "x/secret_3"]
    mixture = {"secret/two": 3.0, "one.txt": 2.0, "y/secret_3": 1.0}
    text = card_with(loaded, path=paths, mixture=mixture, replay=0.1, replay_path="/secret/old")
    assert "secret" not in text
    assert "--set 'data.path=[TEXT_1, TEXT_2, TEXT_3]'" in text
    path = tmp_path / "tiny.yaml"
    path.write_text(text.partition("```yaml\n")[2].partition("```")[0])
    again, _ = load_config(path, ["data.path=[TEXT_1, TEXT_2, TEXT_3]"])
    assert again.data.mixture == {"TEXT_2": 3.0, "TEXT_1": 2.0, "TEXT_3": 1.0}


@pytest.mark.parametrize("changed", [False, True])
def test_shipped_configuration_is_named_if_nothing_in_it_was_changed(loaded, changed):
    overrides = ["training.warmup_steps=7"] if changed else []
    config, _ = load_config(recipes_folder() / "chatgot_quick.yaml", overrides)
    run_id = "chatgot_quick_20250102-030405"
    known = replace(loaded, run_id=run_id, config=config, data_sha256=DEFAULT_TEXT_SHA256)
    text = card(known)
    ending = ".yaml" if changed else ""
    assert f"\nchatgot train --config chatgot_quick{ending}\n" in text
    assert "Shakespeare's plays" in text
    assert "It ends after 6 minutes" in text


def test_odd_values_of_a_checkpoint_do_not_become_markdown(loaded):
    odd = replace(
        loaded,
        versions={"torch": "2 | <script>", "python": 3, "chatgot": "1.0"},
        speakers=tuple(replace(s, name=f"`{s.name}|", partner="") for s in loaded.speakers),
    )
    text = card(odd)
    assert "<script>" not in text
    assert "| trained with | chatgot 1.0 |" in text
    assert "`` `" in text


@pytest.mark.parametrize("name", ["a; touch b", "$(touch b)", "x\n# <b>", "a`b", "../a b", "--c d"])
def test_odd_name_of_a_run_becomes_neither_markdown_nor_a_command(loaded, name):
    text = card(replace(loaded, run_id=f"{name}_20250102-030405"))
    assert name not in text
    assert "# model\n" in text
    assert "chatgot train --config model.yaml --set" in text


def test_name_with_a_space_is_one_word_of_the_command(loaded):
    text = card(replace(loaded, run_id="my text_20250102-030405"))
    assert "chatgot train --config 'my text.yaml' --set" in text


def test_any_number_of_backquotes_in_a_name_stays_code(loaded):
    speakers = tuple(replace(s, name=f"``\n<b>{s.name}", partner="") for s in loaded.speakers)
    assert "``` `` <b>KING: ```" in card(replace(loaded, speakers=speakers))


def test_card_of_a_run_without_evaluation_and_size_leaves_them_out(loaded):
    text = card(replace(loaded, val_loss=None, data_tokens=None, speakers=()))
    assert "held-out loss" not in text
    assert "3,000 tokens" not in text
    assert "A prompt is a dialogue" not in text
