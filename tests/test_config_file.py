"""All mistakes in a configuration are named at once and quickly; valid values are read exactly."""

import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgot import config_file, plain_yaml
from chatgot.config import FP32_MAX, FP32_MIN, Config, flat, keys_of
from chatgot.config_file import effective_yaml, key_meant, load_config
from chatgot.errors import ConfigError

SMALLEST = "training: {max_steps: 10}\n"
FIELDS = dict(keys_of())


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def parser(request, monkeypatch):
    """Run a test with both parsers: libyaml, and PyYAML's own, used where libyaml is missing."""
    if not hasattr(yaml, request.param):
        pytest.skip("this PyYAML has no libyaml")
    monkeypatch.setattr(plain_yaml, "PARSER", getattr(yaml, request.param))


def write(folder: Path, content: str | bytes, name: str = "small.yaml") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path, *overrides: str) -> str:
    """Return the message of the ConfigError, which must come within half a second of CPU time."""
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert time.process_time() - start < 0.5
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert str(path) in message.splitlines()[0]
    assert len(message.splitlines()) <= 22
    assert all(line.isprintable() for line in message.splitlines())
    assert "pydantic" not in message
    assert "http" not in message
    return message


def read(folder: Path, content: str = SMALLEST, *overrides: str) -> Config:
    return load_config(write(folder, content), overrides)[0]


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "a duplicate key": ("seed: 1\ntraining: {}\nseed: 2\n", ["seed", "twice", "lines 1 and 3"]),
    "a nested duplicate key": (
        "training:\n  epochs: 1\n  epochs: 1\n",
        ["training.epochs", "lines 2 and 3"],
    ),
    "an anchor": ("seed: &a 3\n", ["line 1", "anchor &a"]),
    "an alias bomb": (BOMB, ["line 2", "alias *a"]),
    "a recursive alias": ("model: &m\n  d_model: *m\n", ["alias *m"]),
    "a merge key": ("<<: {seed: 1}\n", ["<<", "merge"]),
    "a python tag": (
        "seed: !!python/object/apply:os.getpid []\n",
        ["line 1", "!!python/object/apply:os.getpid"],
    ),
    "a standard tag": ("seed: !!int 3\n", ["tag !!int"]),
    "a local tag": ("seed: !x 3\n", ["tag !x"]),
    "a tag on a section": ("model: !!map {}\n", ["tag !!map"]),
    "3000 brackets": ("seed: " + "[" * 3000 + "]" * 3000, ["line 1", "deeper than 10"]),
    "3000 open braces": ("{" * 3000, ["deeper than 10"]),
    "3000 dashes": ("- " * 3000, ["deeper than 10"]),
    "3000 indents": ("\n".join(" " * n + "a:" for n in range(600)), ["line 11", "deeper than 10"]),
    "100 000 values": ("seed: [" + "1," * 100_000 + "]", ["more than 2000"]),
    "50 000 keys": ("a: 1\n" * 50_000, ["more than 2000"]),
    "1 900 misread values": ("seed: [" + "010," * 1_900 + "]", ["seed[0]", "010", "and 1882 more"]),
    "900 unknown keys": (
        "".join(f"max_warmup_interval_{n}: 1\n" for n in range(990)),
        ["interval_0", "971 more"],
    ),
    "a long key": ("? " + "k" * 200_000 + "\n: 1\n", ["kkkk", "unknown key"]),
    "a long number": ("seed: " + "9" * 200_000, ["seed", "999", "a plain decimal number"]),
    "a long fraction": ("seed: " + "9" * 200_000 + ".0", ["seed", "too large"]),
    "a long base-60 number": ("seed: 1" + ":1" * 100_000, ["seed", "1:1:1"]),
    "a long text": ("seed: " + "x" * 200_000, ["seed", "xxx...", "a whole number"]),
    "too large a file": ("#" * (256 * 1024 + 1), ["256 KiB"]),
    "UTF-16": ("seed: 1\n".encode("utf-16"), ["UTF-16", "UTF-8"]),
    "UTF-16 without a mark": ("seed: 1\n".encode("utf-16-le"), ["UTF-16", "UTF-8"]),
    "NUL": (b"seed: 1\0\n", ["NUL"]),
    "Latin-1": ("seed: 1\n# Größe\n".encode("latin-1"), ["line 2", "0xf6", "UTF-8"]),
    "a control character": ("seed: 1\nmodel: \x07\n", ["line 2", r"\x07"]),
    ".nan": (
        "training: {max_steps: 1, learning_rate: .nan}\n",
        ["training.learning_rate", ".nan", "finite"],
    ),
    ".inf": (
        "training: {max_steps: 1, learning_rate: .inf}\n",
        ["training.learning_rate", ".inf", "finite"],
    ),
    "-.Inf": (
        "training: {max_steps: 1, grad_clip: -.Inf}\n",
        ["training.grad_clip", "-.Inf", "finite"],
    ),
    "+.INF": (
        "training: {max_steps: 1, grad_clip: +.INF}\n",
        ["training.grad_clip", "+.INF", "finite"],
    ),
    "nan": (
        "training: {learning_rate: nan}\n",
        ["training.learning_rate", "'nan'", "a number (at least 1.2e-38, at most 3e+38)"],
    ),
    "'inf'": (
        "training: {max_minutes: 'inf'}\n",
        ["training.max_minutes", "'inf'", "a number (at least 1e-09, at most 1e+09) or null"],
    ),
    "-Infinity": (
        "sampling: {temperature: -Infinity}\n",
        ["temperature", "'-Infinity'", "(at least 1.2e-38, at most 3e+38) or 0"],
    ),
    "1e400": (
        "training: {learning_rate: 1e400}\n",
        ["training.learning_rate", "1e400", "too large"],
    ),
    "1:30": (
        "training: {max_minutes: 1:30}\n",
        ["training.max_minutes", "1:30", "90", "in quotes"],
    ),
    "1:30.5": ("training: {max_minutes: 1:30.5}\n", ["1:30.5", "90.5"]),
    "010": (
        "training: {max_steps: 010}\n",
        ["training.max_steps", "010", "reads as 8:", "decimal number"],
    ),
    "08": (
        "training: {max_steps: 08}\n",
        ["training.max_steps", "08", "reads as '08'", "decimal number"],
    ),
    "0x10": ("training: {max_steps: 0x10}\n", ["training.max_steps", "0x10", "reads as 16:"]),
    "0b11": ("training: {max_steps: 0b11}\n", ["training.max_steps", "0b11", "reads as 3:"]),
    "1_000": ("training: {max_steps: 1_000}\n", ["training.max_steps", "1_000", "reads as 1000:"]),
    "yes": ("model: {bias: yes}\n", ["model.bias", "yes", "reads as true:", "true or false"]),
    "No": ("model: {bias: No}\n", ["model.bias", "No", "reads as false:", "true or false"]),
    "on": ("model: {bias: on}\n", ["model.bias", "on", "true or false"]),
    "OFF": ("model: {bias: OFF}\n", ["model.bias", "OFF", "true or false"]),
    "a date": ("data: {path: 2024-01-31}\n", ["data.path", "2024-01-31", "timestamp", "in quotes"]),
    "a date that does not exist": (
        "data: {path: 2024-13-31}\n",
        ["data.path", "2024-13-31", "in quotes"],
    ),
    "a path like an octal number": ("data: {path: 010}\n", ["data.path", '"010" in quotes']),
    "a path like a number": ("data: {path: 2024}\n", ["data.path", "2024", "text", "in quotes"]),
    "a list at the top": ("- a\n- b\n", ["['a', 'b']", "at the top"]),
    "a scalar at the top": ("hello\n", ["'hello'", "at the top"]),
    "null at the top": ("~\n", ["null", "at the top"]),
    "an empty file": ("", ["found nothing"]),
    "only a comment": ("# nothing\n", ["found nothing"]),
    "two documents": ("seed: 1\n---\nseed: 2\n", ["line 2", "second document"]),
    "two empty documents": ("---\n---\n", ["second document"]),
    "a misread value in a list": (
        "seed: [010]\n",
        ["seed[0] (line 1)", "reads as 8:", "found [?], expected a whole"],
    ),
    "a number as a key": ("1: 2\n", ["line 1", "the key 1", "a name"]),
    "null as a key": ("~: 2\n", ["line 1", "the key null", "a name"]),
    "a truth value as a key": ("model: {true: 2}\n", ["line 1", "the key true", "a name"]),
    "yes as a key": ("yes: 2\n", ["line 1", "yes"]),
    "a list as a key": ("[a, b]: 2\n", ["line 1", "the key ['a', 'b']", "a name"]),
    "a section as a key": ("{a: b}: 2\n", ["line 1", "the key {'a': 'b'}", "a name"]),
    "an open bracket": ("seed: [1\nmodel: {}\n", ["line 2:", "column 6"]),
    "a tab": ("model:\n\td_model: 8\n", ["line 2:", "column 1"]),
    "a colon in a value": ("seed: a: b\n", ["line 1:", "column 8"]),
    "a value as a section": (
        "model: 3\ntraining: {max_steps: 1}\n",
        ["model (line 1)", "3", "a section"],
    ),
    "a list as a section": ("model: [3]\n", ["model (line 1)", "[3]", "a section"]),
    "a section as a value": ("seed: {a: 1}\n", ["seed (line 1)", "{'a': 1}", "a whole number"]),
    "null for a number": ("seed: ~\n", ["seed", "null", "a whole number (at least 0"]),
    "a fraction for a whole number": (
        "training: {max_steps: 1.5}\n",
        ["max_steps", "1.5", "(at least 1, at most 1,000,000,000,000,000) or null"],
    ),
    "true for a number": (
        "training: {max_steps: true}\n",
        ["training.max_steps", "found true", "a whole number"],
    ),
    "a quoted truth value": ("model: {bias: 'true'}\n", ["model.bias", "'true'", "true or false"]),
    "a number above its range": (
        "model: {dropout: 1.0}\n",
        ["model.dropout", "1.0", "(at least 0, below 1)"],
    ),
    "a choice that does not exist": (
        "device: gpu\n",
        ["device", "'gpu'", "auto, cpu, cuda or mps"],
    ),
    "a wrong item": ("training: {betas: [0.9, x]}\n", ["training.betas[1]", "'x'", "a number"]),
    "too short a list": (
        "training: {betas: [0.9]}\n",
        ["training.betas (line 1)", "[0.9]", "a list of 2 items"],
    ),
    "too long a list": (
        "training: {betas: [0.9, 0.9, 0.9]}\n",
        ["training.betas", "a list of 2 items"],
    ),
    "a number as a prompt": (
        "sampling: {prompts: [a, 3]}\n",
        ["sampling.prompts[1]", "found 3", "text", "in quotes"],
    ),
    "a text for a list": ("sampling: {prompts: abc}\n", ["sampling.prompts", "'abc'", "a list"]),
    "control characters in a path": (
        'data: {path: "a\\nb\\e[0m"}\n',
        ["data.path", r"a\nb\x1b[0m", "in one line"],
    ),
    "sizes that do not fit": (
        "model: {d_model: 9, n_head: 2}\n",
        ["model (line 1)", "d_model (9)", "n_head (2)"],
    ),
    "no end of the run": ("seed: 1\n", ["training", "epochs, max_steps, max_minutes"]),
    "a dotted name": (
        "training.batch_size: 3\n",
        ["training.batch_size", "only in --set", "batch_size:"],
    ),
    "an empty key": ("'': 3\n", ['""', "unknown key"]),
}


@pytest.mark.parametrize(("content", "named"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_by_name_within_half_a_second(tmp_path, parser, content, named):
    message = refusal(write(tmp_path, content))
    for words in named:
        assert words in message, message


@pytest.mark.parametrize(
    ("key", "found"),
    [("gradient_checkpointing", "maybe"), ("eval_batches", "x"), ("max_steps", "x")],
)
def test_an_error_on_a_key_of_several_types_is_one_line(tmp_path, key, found):
    lines = refusal(write(tmp_path, f"training: {{epochs: 1, {key}: {found}}}")).splitlines()
    assert lines[0].endswith("small.yaml: 1 problem")
    assert len(lines) == 2
    assert f"training.{key} (line 1): found {found!r}, expected " in lines[1]
    assert " or " in lines[1]


def test_all_problems_of_file_and_overrides_are_named_together(tmp_path):
    content = "seed: -1\nmodel: {bias: no, lr: 1}\ntraining: {max_steps: 0}\n"
    message = refusal(write(tmp_path, content), "device=gpu", "data.pth=x", "seed")
    assert "7 problems" in message
    for words in (
        "seed (line 1)",
        "model.bias",
        "model.lr",
        "training.max_steps",
        "device (--set)",
        "data.pth",
        "'seed'",
    ):
        assert words in message


def test_twenty_problems_are_shown_and_the_rest_are_counted(tmp_path):
    lines = refusal(
        write(tmp_path, "".join(f"key_{n}: 1\n" for n in range(29)) + SMALLEST)
    ).splitlines()
    assert lines[0].endswith("29 problems")
    assert len(lines) == 22
    assert lines[-1].strip() == "and 9 more"


@pytest.mark.parametrize(
    "name",
    [
        "../x y.yaml",
        "-rf.yaml",
        "a" * 101 + ".yaml",
        "a\nb.yaml",
        "%s.yaml",
        "{}.yaml",
        ".yaml",
        "ä.yaml",
        "..",
    ],
)
def test_a_file_name_that_cannot_name_an_experiment_is_refused(tmp_path, name):
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / name)
    assert "the file's name" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_of_100_letters_digits_dots_and_dashes_are_accepted(tmp_path):
    for stem in ("a" * 100, "7.b_c-d"):
        assert load_config(write(tmp_path, SMALLEST, f"{stem}.yaml"))[0].training.max_steps == 10


@pytest.mark.parametrize(
    "asked",
    [
        "models/debug/smal.yaml",
        "models/small.yaml",
        "model/small.yaml",
        "models/other/small.yml",
        "debug/small",
    ],
)
def test_a_missing_file_suggests_the_nearest_name(tmp_path, asked):
    (tmp_path / "models/debug").mkdir(parents=True)
    (tmp_path / "models/other").mkdir()
    there = write(tmp_path / "models/debug", SMALLEST)
    message = refusal(tmp_path / asked)
    assert "no such file" in message
    assert f"did you mean {there}?" in message


def test_a_missing_file_without_a_similar_name_gets_no_suggestion(tmp_path):
    (tmp_path / "models/debug").mkdir(parents=True)
    write(tmp_path / "models", SMALLEST, "unlike.yaml")
    said = refusal(tmp_path / "models/debug/huge/13B.yaml")
    assert "no such file; shipped ones: chatgot_finetune, chatgot_mini, " in said


def test_anything_but_a_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe.yaml", "folder.yaml"):
        assert "expected a YAML file" in refusal(tmp_path / name)
    assert "cannot be read" in refusal(write(tmp_path, SMALLEST) / "x.yaml")
    with pytest.raises(ConfigError, match="null byte"):
        load_config(tmp_path / "a\0b" / "small.yaml")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_an_unreadable_file_is_refused(tmp_path):
    path = write(tmp_path, SMALLEST)
    path.chmod(0)
    assert "Permission denied" in refusal(path)


@pytest.mark.parametrize("key", FIELDS)
def test_a_key_that_lacks_a_letter_is_recognised_in_file_and_override(tmp_path, key):
    section, _, leaf = key.rpartition(".")
    for position in range(len(leaf)):
        wrong = leaf[:position] + leaf[position + 1 :]
        if wrong == "top_":  # top_k or top_p
            continue
        above = section.split(".") if section else []
        lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(above)]
        content = "\n".join([*lines, f"{'  ' * len(above)}{wrong}: 1\n"])
        dotted = f"{section}.{wrong}".lstrip(".")
        assert f"{dotted} (line {len(above) + 1}): unknown key, did you mean {key}?" in refusal(
            write(tmp_path, content)
        )
        assert f"--set {dotted}: unknown key, did you mean {key}?" in refusal(
            write(tmp_path, SMALLEST), f"{dotted}=1"
        )


def test_a_similar_key_of_the_same_section_is_suggested_first(tmp_path):
    message = refusal(
        write(tmp_path, f"model: {{max_seq_step: 1}}\n{SMALLEST}")
    )  # more similar to training.max_steps
    assert "did you mean model.max_seq_length?" in message


def test_a_key_in_the_wrong_section_is_found_in_the_right_one(tmp_path):
    message = refusal(
        write(tmp_path, "batch_size: 3\nmodel: {temperature: 1}\ntrainning: {epochs: 1}\n")
    )
    for hint in ("training.batch_size", "sampling.temperature", "training"):
        assert f"did you mean {hint}?" in message


MOVED = {
    "max_rewinds": "1",
    "rewind_skip_steps": "1",
    "amp_retry_steps": "1",
    "min_loss_scale": "1",
    "spike": "{enabled: true}",
}


@pytest.mark.parametrize("key", MOVED)
def test_a_safety_key_in_its_old_place_gets_a_hint_at_the_new_one(tmp_path, key):
    content = f"training:\n  max_steps: 1\n  {key}: {MOVED[key]}\n"
    message = refusal(write(tmp_path, content))
    assert f"training.{key} (line 3): unknown key, did you mean training.safety.{key}?" in message


@pytest.mark.parametrize(
    "key", ["max_rewinds", "min_loss_scale", "spike", "spike.enabled", "spike.threshold"]
)
def test_an_override_of_a_moved_safety_key_gets_a_hint_at_the_new_place(tmp_path, key):
    message = refusal(write(tmp_path, SMALLEST), f"training.{key}=1")
    assert f"--set training.{key}: unknown key, did you mean training.safety.{key}?" in message


def test_an_empty_section_in_its_old_place_gets_a_hint_at_the_new_one(tmp_path):
    message = refusal(write(tmp_path, "training:\n  max_steps: 1\n  spike:\n"))
    assert "did you mean training.safety.spike?" in message


@pytest.mark.parametrize(
    ("other", "ours"),
    {
        "lr": "training.learning_rate",
        "n_embd": "model.d_model",
        "n_layer": "model.n_layers",
        "bs": "training.batch_size",
        "block_size": "model.max_seq_length",
        "gradient_accumulation_steps": "training.accumulate_grad_batches",
        "max_iters": "training.max_steps",
        "dropout_p": "model.dropout",
        "wd": "training.weight_decay",
        "num_heads": "model.n_head",
        "max_grad_norm": "training.grad_clip",
        "out_dir": "paths.checkpoints",
    }.items(),
)
def test_a_key_of_another_trainer_gets_a_hint_but_is_not_accepted(tmp_path, other, ours):
    assert f"did you mean {ours}?" in refusal(
        write(tmp_path, f"training:\n  max_steps: 1\n  {other}: 1\n")
    )
    assert f"did you mean {ours}?" in refusal(write(tmp_path, f"{SMALLEST}{other}: 1\n"))


def test_hints_at_other_trainers_names_point_only_to_our_keys():
    ours = {name.rpartition(".")[2] for name in FIELDS}
    others = " ".join(config_file.OTHER_NAMES.values()).split()
    assert config_file.OTHER_NAMES.keys() <= ours
    assert not set(others) & ours
    assert len(set(others)) == len(others)


@pytest.mark.parametrize(
    "text", ["6e-4", "5e-4", "1e+30", "1e-05", "1E-5", ".5", "5.", "+0.5", "1.5e3", "3"]
)
def test_numbers_in_any_notation_are_read_as_numbers(tmp_path, parser, text):
    assert read(
        tmp_path, f"training: {{max_steps: 1, learning_rate: {text}}}"
    ).training.learning_rate == float(text)
    assert read(
        tmp_path, SMALLEST, f"training.learning_rate={text}"
    ).training.learning_rate == float(text)


def test_a_section_without_keys_counts_as_empty(tmp_path):
    assert read(tmp_path, f"sampling:\nmodel: ~\ndata: {{}}\n{SMALLEST}") == read(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    assert (
        load_config(write(tmp_path, b"\xef\xbb\xbfseed: 5\r\ntraining:\r\n  max_steps: 3\r\n"))[
            0
        ].seed
        == 5
    )


OTHER_VALUES = {  # for each key a value other than the default, as written and as read
    "seed": ("7", 7),
    "device": ("cpu", "cpu"),
    "model.architecture": ("modern", "modern"),
    "model.d_model": ("64", 64),
    "model.bias": ("false", False),
    "model.activation": ("gelu_tanh", "gelu_tanh"),
    "model.tie_embeddings": ("False", False),
    "training.optimizer": ("muon", "muon"),
    "training.attention": ("products", "products"),
    "training.compile": ("false", False),
    "distributed.strategy": ("fsdp", "fsdp"),
    "distributed.backend": ("gloo", "gloo"),
    "distributed.timeout_s": ("6e+1", 60.0),
    "distributed.one_file_gb": ("0.5", 0.5),
    "training.background_saves": ("true", True),
    "training.lr_schedule": ("linear", "linear"),
    "training.precision_dtype": ("bf16", "bf16"),
    "training.mixed_precision": ("true", True),
    "training.gradient_checkpointing": ("every_2", "every_2"),
    "training.micro_batch_size": ("3", 3),
    "training.eval_batches": ("all", "all"),
    "training.betas": ("[0.5, 6e-1]", [0.5, 0.6]),
    "training.multi_token_weights": ("[0.5, 1e-1]", [0.5, 0.1]),
    "training.epochs": ("2", 2),
    "training.max_minutes": ("1e+2", 100.0),
    "training.muon_beta2": ("9.5e-1", 0.95),
    "training.stop_when_no_better": ("3", 3),
    "training.decay_share": ("2e-1", 0.2),
    "training.distillation.teachers": ("[a.pt]", ["a.pt"]),
    "training.distillation.weight": ("2e-1", 0.2),
    "training.distillation.temperature": ("2", 2.0),
    "training.lr_decay_steps": ("12", 12),
    "training.safety.spike.enabled": ("true", True),
    "training.report": ("false", False),
    "training.dynamic_batch_size.enabled": ("true", True),
    "training.dynamic_batch_size.initial": ("3", 3),
    "training.dynamic_batch_size.growth_backoff": ("4e+0", 4.0),
    "data.path": ("a.txt", "a.txt"),
    "data.shards": ("s3://bucket/show", "s3://bucket/show"),
    "data.encoding": ("latin2", "iso8859-2"),
    "data.split": ("documents", "documents"),
    "data.tokenizer": ("bpe", "bpe"),
    "data.vocab_size": ("300", 300),
    "data.allow_change": ("true", True),
    "data.learn_from": ("[ANN, BOB]", ["ANN", "BOB"]),
    "data.mixture": ("{a.txt: 3e-1, b c.txt: 2}", {"a.txt": 0.3, "b c.txt": 2.0}),
    "data.replay": ("0.2", 0.2),
    "data.replay_path": ("old.txt", "old.txt"),
    "training.threads": ("2", 2),
    "training.niceness": ("5", 5),
    "sampling.prompts": ('["a: b", c]', ["a: b", "c"]),
    "sampling.top_k": ("5", 5),
    "sampling.top_p": ("9e-1", 0.9),
    "sampling.originality": ("false", False),
    "model.d_hid": ("24", 24),
    "model.n_kv_head": ("8", 8),
    "model.head_dim": ("64", 64),
    "model.rope_base": ("1e6", 1e6),
    "model.qk_norm": ("false", False),
    "training.grad_clip": ("null", None),
    "training.lora.targets": ("[qkv, down]", ["qkv", "down"]),
    "training.sample_interval_minutes": ("3", 3.0),
}


@pytest.mark.parametrize("key", FIELDS)
def test_each_key_can_be_set_and_nothing_else_changes(tmp_path, key):
    default = FIELDS[key].default
    by_type = {int: ("16", 16), float: ("2.5e-1", 0.25), str: ("else/where", "else/where")}
    text, value = OTHER_VALUES.get(key) or by_type.get(type(default)) or ("1", 1)
    path = write(tmp_path, SMALLEST)
    before = flat(load_config(path)[0].model_dump(mode="json"))
    config, names = load_config(path, [f"{key}={text}"])
    assert names == {key}
    assert flat(config.model_dump(mode="json")) == before | {key: value}
    assert value != before[key]
    assert path.read_text() == SMALLEST


@pytest.mark.parametrize("section", ["", "  lora:\n", "  lora: null\n", "  lora: {}\n"])
def test_a_rank_can_be_set_where_lora_is_null_or_missing(tmp_path, section):
    path = write(tmp_path, f"training:\n  max_steps: 10\n{section}")
    assert not load_config(path)[0].training.lora.enabled
    lora = load_config(path, ["training.lora.rank=8"])[0].training.lora
    assert (lora.rank, lora.alpha, lora.targets) == (8, 16.0, None)


@pytest.mark.parametrize(
    ("target", "meant"),
    [("qvk", "qkv"), ("q_proj", "qkv"), ("o_proj", "proj"), ("gate", "gate_up"), ("fc2", "down")],
)
def test_an_unknown_layer_for_lora_gets_a_hint_at_ours(tmp_path, target, meant):
    path = write(tmp_path, f"training: {{max_steps: 1, lora: {{targets: [proj, {target}]}}}}")
    (_, line) = refusal(path).splitlines()
    assert line.endswith(
        f"training.lora.targets[1] (line 1): found {target!r}, "
        f"expected qkv, proj, up, gate_up or down, did you mean {meant}?"
    )


def test_a_choice_that_is_nearly_right_gets_a_hint(tmp_path):
    message = refusal(write(tmp_path, SMALLEST), "training.optimizer=adam")
    assert "expected adamw or muon, did you mean adamw?" in message
    message = refusal(write(tmp_path, SMALLEST), "training.optimizer=lion")
    assert "expected adamw or muon" in message
    assert "did you mean" not in message


def test_the_last_override_wins_and_all_are_named(tmp_path):
    path = write(tmp_path, "seed: 3\ntraining: {max_steps: 1}\nsampling:\n")
    config, names = load_config(
        path,
        ["seed=1", "sampling.top_k=3", "seed=2", "training.max_steps=null", "training.epochs=1"],
    )
    assert (config.seed, config.sampling.top_k, config.training.max_steps) == (2, 3, None)
    assert names == {"seed", "sampling.top_k", "training.max_steps", "training.epochs"}


UNQUOTED = [
    "010",
    "2024",
    "no",
    "1:30",
    "2024-01-31",
    "./~",
    "true",
    "/a/b: c#1.txt",
    "a #b",
    "[x",
    "{",
    "*a",
    "&a",
    "!x",
]
UNQUOTED += ["- a", "a=b", "'", '"a', "1e5", ".nan", "%x", "@x", "Ω.txt"]


@pytest.mark.parametrize("text", UNQUOTED)
def test_a_text_key_takes_an_unquoted_value_as_it_is(tmp_path, text):
    assert read(tmp_path, SMALLEST, f"data.path={text}").data.path == text
    assert read(tmp_path, SMALLEST, f"paths.logs={text}").paths.logs == text


def test_a_key_of_texts_or_a_list_takes_a_list_as_a_list(tmp_path):
    several = read(tmp_path, SMALLEST, "data.path=[a.txt, 'b, c.txt']").data.path
    assert several == ["a.txt", "b, c.txt"]
    assert read(tmp_path, SMALLEST, "data.path='[a.txt]'").data.path == "[a.txt]"
    assert read(tmp_path, SMALLEST, "paths.logs=[a.txt]").paths.logs == "[a.txt]"
    assert "data.path[1] (--set): found 3, expected text" in refusal(
        write(tmp_path, SMALLEST), "data.path=[a.txt, 3]"
    )


def test_a_text_key_takes_quotes_off_and_null_as_null(tmp_path):
    assert read(tmp_path, SMALLEST, "data.path='010'").data.path == "010"
    assert read(tmp_path, SMALLEST, 'data.path="null"').data.path == "null"
    assert read(tmp_path, SMALLEST, "data.path=x", "data.path=null").data.path is None
    assert "paths.logs (--set): found null, expected text" in refusal(
        write(tmp_path, SMALLEST), "paths.logs=null"
    )


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.max_steps", ["'training.max_steps'", "key=value"]),
        ("", ["''", "key=value"]),
        ("=3", ["unknown key"]),
        ("model=3", ["--set model:", "a section", "model.architecture="]),
        ("model=", ["--set model:", "a section"]),
        ("seed.x=3", ["--set seed.x:", "seed is a value"]),
        ("training.betas.0=3", ["training.betas is a value"]),
        ("training.max_steps=", ["--set training.max_steps:", "found no value"]),
        ("data.path=", ["--set data.path:", "found no value"]),
        ("data.encoding=klingon", ["data.encoding (--set)", "'klingon'", "cp1250"]),
        ("training.max_steps=# 3", ["--set training.max_steps:", "found nothing"]),
        ("training.max_steps=010", ["training.max_steps (--set)", "010", "reads as 8:"]),
        ("model.bias=yes", ["model.bias (--set)", "yes", "true or false"]),
        ("training.betas=[0.9, 1:30]", ["training.betas[1] (--set)", "1:30"]),
        ("training.betas=[0.9", ["--set training.betas", "column"]),
        ("training.betas=[&a 0.9, *a]", ["--set training.betas", "anchor &a", "alias *a"]),
        ("training.betas=" + "[" * 3000, ["--set training.betas", "deeper than 10"]),
        ("training.max_steps={1: 2}", ["training.max_steps.1 (--set)", "the key 1"]),
        ("training.max_steps=!!int 3", ["tag !!int"]),
        ("training.max_steps=\udcff", [r"\udcff"]),
        ("data.path=\udcff", ["data.path (--set)", r"\udcff"]),
        ("data.path=a\x1bb", ["data.path (--set)", r"a\x1bb", "control characters"]),
        ("training.learning_rate=-1", ["training.learning_rate (--set)", "-1", "at least 1.2e-38"]),
        ("a\x1bb=1", [r"--set a\x1bb", "unknown key"]),
        ("tr\u0430ining.max_steps=3", ["U+0430 CYRILLIC SMALL LETTER A", "keys are ASCII"]),
        ("training.max_steps\u200b=3", ["mean training.max_steps?", "U+200B ZERO WIDTH SPACE"]),
    ],
)
def test_an_invalid_override_is_refused_by_name(tmp_path, parser, override, named):
    path = write(tmp_path, SMALLEST)
    message = refusal(path, override)
    for words in named:
        assert words in message, message
    assert path.read_text() == SMALLEST


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("max_steps", "training.max_steps"),
        ("max-steps", "training.max_steps"),
        ("training.max_steps", "training.max_steps"),
        ("lr", "training.learning_rate"),
        ("block_size", "model.max_seq_length"),
        ("out_dir", "paths.checkpoints"),
        ("seed", "seed"),
        ("qqqqqq", None),
    ],
)
def test_the_key_is_known_that_an_option_of_another_trainer_means(word, key):
    assert key_meant(word) == key


def test_an_override_replaces_a_bad_value_but_not_a_broken_section(tmp_path):
    assert read(tmp_path, "seed: -1\ntraining: {max_steps: 1}", "seed=1").seed == 1
    assert "model (line 1): found 3" in refusal(
        write(tmp_path, f"model: 3\n{SMALLEST}"), "model.d_model=8"
    )


TEXTS = [
    "no",
    "010",
    "null",
    "~",
    "6e-4",
    "1:30",
    "2024-01-31",
    " a ",
    "KING:\n",
    "a\n\n b\n",
    "# x",
    "a: b",
    "'",
    '"',
]
TEXTS += [
    "\\n",
    "\t",
    "\x85\u2028\ufeff",
    "\x7f\x01",
    "Ω🎭",
    "- a",
    "<<",
    "=",
    ".inf",
    "word",
    "a b " * 900,
    "!t",
    "08",
]
TEXTS += ["x" * 3000]


def test_the_effective_yaml_is_read_back_equal(tmp_path, parser):
    floats = {
        "learning_rate": 1e-05,
        "min_learning_rate": 0.0,
        "adam_eps": 1e-30,
        "grad_clip": 1e30,
        "max_minutes": 0.1,
    }
    training = floats | {"betas": (0.1 + 0.2, 1e-5), "max_steps": 10**15, "eval_batches": "all"}
    for text in filter(str.isprintable, TEXTS):
        values = {
            "training": training,
            "data": {"path": "./~" if text == "~" else text},  # home, where it is a path
            "sampling": {"prompts": TEXTS},
            "seed": 2**63 - 1,
        }
        config = Config.model_validate(values)
        assert load_config(write(tmp_path, effective_yaml(config)))[0] == config


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text(min_size=1), max_size=4),
    st.floats(min_value=FP32_MIN, max_value=FP32_MAX),
)
def test_any_effective_yaml_is_read_back_equal(tmp_path_factory, prompts, rate):
    training = {"max_steps": 3, "learning_rate": rate}
    config = Config.model_validate({"training": training, "sampling": {"prompts": prompts}})
    assert load_config(write(tmp_path_factory.getbasetemp(), effective_yaml(config)))[0] == config


def test_every_key_is_in_the_effective_yaml(tmp_path):
    assert set(flat(yaml.safe_load(effective_yaml(read(tmp_path))))) == set(FIELDS)


def message_of(path: Path, *overrides: str) -> str:
    """Return why a configuration is refused, or ""; any other error fails the test."""
    try:
        load_config(path, overrides)
    except ConfigError as error:
        return str(error)
    return ""


PIECES = [
    "training",
    "seed",
    "model",
    ":",
    ": ",
    "\n",
    "  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&a ",
    "*a",
    "!!int ",
    "'",
    '"',
]
PIECES += [
    "|",
    ">",
    "#",
    "? ",
    "---",
    "...",
    "%YAML 1.1\n",
    "<<",
    "010",
    ".nan",
    "1:30",
    "\\UFFFFFFFF",
    "\\ud800",
    "\x00",
]
YAML_PIECES = st.lists(st.sampled_from([*PIECES, "é", "\t", "2024-99-99"]), max_size=30).map(
    "".join
)


@pytest.mark.parametrize("name", ["CSafeLoader", "SafeLoader"])
@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=200)
    | YAML_PIECES.map(str.encode)
    | st.text(max_size=200).map(str.encode)
)
def test_any_bytes_give_a_config_or_a_config_error(tmp_path_factory, name, data):
    path = write(tmp_path_factory.getbasetemp(), data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_yaml, "PARSER", getattr(yaml, name, yaml.SafeLoader))
        message = message_of(path)
    assert all(line.isprintable() for line in message.splitlines())


@pytest.mark.parametrize("name", ["CSafeLoader", "SafeLoader"])
@settings(max_examples=200, deadline=None)
@given(
    key=st.sampled_from([*FIELDS, "model", "nothing", ""]) | st.text(max_size=20),
    value=st.text(max_size=40) | YAML_PIECES | st.text(st.characters(codec=None), max_size=20),
    equals=st.sampled_from(["=", "=", "=", ""]),
)
def test_any_override_gives_a_config_or_a_config_error(tmp_path_factory, name, key, value, equals):
    path = write(tmp_path_factory.getbasetemp(), SMALLEST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_yaml, "PARSER", getattr(yaml, name, yaml.SafeLoader))
        message = message_of(path, f"{key}{equals}{value}")
    assert all(line.isprintable() for line in message.splitlines())
