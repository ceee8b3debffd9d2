"""What users of other trainers type: the answer says how it is said here."""

import harness
import pytest


def refused(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        harness.load_script().parse_arguments(list(arguments))
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--max_steps", "3"], "keys are set by --set training.max_steps=VALUE"),
        (["--learning-rate=1e-3"], "keys are set by --set training.learning_rate=VALUE"),
        (["--training.batch_size=8"], "keys are set by --set training.batch_size=VALUE"),
        (
            ["--block_size", "8", "--lr=1"],
            "model.max_seq_length=VALUE --set training.learning_rate",
        ),
        (["--qqqqqqqq"], "unrecognized arguments: --qqqqqqqq\n"),
        (["other.txt"], "unrecognized arguments: other.txt\n"),
    ],
)
def test_an_option_of_another_trainer_is_answered_with_our_key(words, hint, capsys):
    refused("text.txt", *words)
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.yaml", "a.YAML", "a.Yml"])
def test_a_yaml_in_place_of_a_text_is_refused_in_any_case(name, capsys):
    """A file system without case, or another program, may have written .YAML."""
    refused(name, "--minutes", "1")
    assert f"did you mean --config {name}?" in capsys.readouterr().err
