"""The plan and what its script prints."""

import json
from dataclasses import replace

import pytest
import yaml
from tiny import V, tiny

from chatgot.errors import ConfigError
from chatgot.planning.machines import machines_named, price_named
from chatgot.planning.made_up_text import made_up_tokens
from chatgot.planning.plan import Asked, best_of, lines, make_plan
from chatgot.planning.vocabulary import CHARACTERS, vocabulary_size
from scripts.plan import main


def asked(config, machines="8xH100", **more) -> Asked:
    return Asked(config, machines_named(machines), V, "given", **more)


@pytest.fixture(name="yaml_path")
def fixture_yaml_path(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny({"batch_size": 16}).model_dump(mode="json")))
    return path


def test_tokens_default_to_those_of_the_steps():
    plan = make_plan(asked(tiny()))
    assert (plan.steps, plan.tokens) == (10, 10 * 4 * 16)
    assert make_plan(asked(tiny(), tokens=1000)).steps == 16


def test_run_of_unknown_length_asks_for_tokens():
    with pytest.raises(ConfigError, match="--tokens"):
        make_plan(asked(tiny({"max_steps": None, "epochs": 1})))


def test_model_that_fits_nowhere_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="larger machines") as error:
        make_plan(asked(tiny(d_model=2**17, n_layers=100)))
    assert "\n" not in str(error.value)


def test_cost_is_printed_only_with_a_price():
    plan = make_plan(asked(tiny()))
    assert "$" not in "\n".join(lines(plan))
    priced = replace(plan, asked=replace(plan.asked, price=price_named("3600")))
    seconds = priced.steps * priced.chosen.step_s
    assert priced.cost(priced.chosen) == pytest.approx(seconds * priced.chosen.ranks)
    assert "$" in "\n".join(lines(priced))


def test_assumed_share_of_the_peak_decides_the_time():
    slow = make_plan(asked(tiny(), "1xH100", mfu=0.1))
    fast = make_plan(asked(tiny(), "1xH100", mfu=0.4))
    assert slow.chosen.compute_s == pytest.approx(4 * fast.chosen.compute_s)


def test_more_ranks_are_advised_while_most_of_their_time_computes():
    one, two, *_ = make_plan(asked(tiny({"batch_size": 8}))).rows
    quick = replace(two, compute_s=0.6 * one.compute_s, sending_s=0.0)
    assert best_of([one, quick]) is quick
    waiting = replace(two, compute_s=0.5 * one.compute_s, sending_s=0.4 * one.compute_s)
    assert best_of([one, waiting]) is one


def test_cpu_is_timed_with_real_steps():
    plan = make_plan(asked(tiny(), "1xcpu"))
    assert plan.timed
    assert plan.chosen.step_s > 0
    assert "measured here" in "\n".join(lines(plan))


def test_vocabulary_is_given_or_configured_or_read_or_assumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny()
    assert vocabulary_size(config, 7)[0] == 7
    assert vocabulary_size(config, None)[0] == CHARACTERS
    text = tmp_path / "abc.txt"
    text.write_text("abc\n" * 500)

    def with_data(**keys: object):
        return config.model_copy(update={"data": config.data.model_copy(update=keys)})

    assert vocabulary_size(with_data(path=str(text)), None)[0] == 5  # and the end of a text
    assert vocabulary_size(with_data(tokenizer="bpe"), None)[0] == config.data.vocab_size


@pytest.mark.parametrize("size", [2, 100, 70_000])
def test_made_up_text_has_the_asked_vocabulary(size):
    tokens = made_up_tokens(tiny(), size)
    assert len(tokens.vocabulary) == size
    assert tokens.ids.max() < size


def test_script_prints_the_plan_and_a_fake_step(yaml_path, capsysbinary):
    words = ["--config", str(yaml_path), "--machines", "2x8xH100", "--vocab_size", "40"]
    assert main([*words, "--fake_ranks", "16"]) == 0
    printed = capsysbinary.readouterr().out.decode()
    for expected in ("plan: tiny on 2x8xH100", "memory of one rank", "assumed: MFU 40%", "advice:"):
        assert expected in printed
    assert "fake step of 16 ranks, fsdp" in printed


def test_script_prints_one_json_object(yaml_path, capsysbinary):
    words = ["--config", str(yaml_path), "--machines", "4xA100", "--vocab_size", "40", "--json"]
    assert main([*words, "--tokens", "1e3"]) == 0
    found = json.loads(capsysbinary.readouterr().out)
    assert [row["ranks"] for row in found["rows"]] == [1, 2, 4]
    assert all(sum(row["parts"].values()) == row["memory_bytes"] for row in found["rows"])


@pytest.mark.slow
def test_script_says_in_one_line_that_nothing_fits(yaml_path, capsys):
    words = ["--config", str(yaml_path), "--machines", "1xL4", "--vocab_size", "40"]
    assert main([*words, "--set", "model.d_model=65536", "--set", "model.n_layers=100"]) == 2
    said = capsys.readouterr().err
    assert "1xL4" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--machines", "8xV9"],
        ["--machines", "1xcpu", "--mfu", "2"],
        ["--machines", "1xcpu", "--tokens", "few"],
        ["--machines", "1xcpu", "--price_per_hour", "x"],
    ],
)
def test_mistake_on_the_command_line_exits_with_2(yaml_path, words, capsys):
    with pytest.raises(SystemExit) as error:
        main(["--config", str(yaml_path), *words])
    assert error.value.code == 2
    assert "expected" in capsys.readouterr().err
