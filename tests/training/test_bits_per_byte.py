"""A loss in bits per byte is comparable between characters and subwords, and exact."""

import math
from pathlib import Path

import numpy as np
import parts
import pytest
from memory_limit import never
from tiny_tokenizers import SPEECHES, subwords

from chatgot.data.bits_per_byte import bits_per_byte, tokens_per_byte
from chatgot.data.configured_text import load_text
from chatgot.data.learned_lines import LearnedTokens
from chatgot.data.token_cache import load_tokens
from chatgot.data.vocabulary import END_OF_TEXT, Characters
from chatgot.run.assembly import Run, assemble
from chatgot.sampling.loading import load_model
from chatgot.training.evaluation import measure_held_out
from chatgot.training.log_lines import evaluation_facts, evaluation_line

TEXT = "aé世🎭\nab\n"  # 1, 2, 3, 4, 1, 1, 1 and 1 bytes


def run_on(folder: Path, text: str, **data) -> Run:
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8")
    config = parts.config(
        data={"path": str(path), **data},
        paths={"cache": str(folder / "cache"), "checkpoints": str(folder / "checkpoints")},
        training={"batch_size": 2, "max_steps": 10, "eval_batches": "all"},
        model={"max_seq_length": 16},
    )
    run = assemble(config, load_text(config, path), parts.CPU, None)
    run.state.run_id = parts.RUN_ID
    return run


def test_one_bit_for_each_byte_is_ln_2_nats_per_byte():
    assert bits_per_byte(math.log(2), 1.0) == 1.0
    assert bits_per_byte(3 * math.log(2), 0.25) == pytest.approx(0.75)


@pytest.mark.parametrize("vocabulary", [Characters("\nabé世🎭"), subwords()])
def test_bytes_are_those_of_all_targets_in_utf_8(vocabulary):
    ids = np.array(vocabulary.encode(TEXT), dtype=np.uint16)
    first = len(vocabulary.bytes_of(int(ids[0])))
    expected = (len(ids) - 1) / (len(TEXT.encode()) - first)
    assert tokens_per_byte(ids, vocabulary) == expected


def test_an_end_of_text_has_no_byte():
    vocabulary = Characters("\na")
    ids = np.array(vocabulary.encode(f"a\n{END_OF_TEXT}\na"), dtype=np.uint16)
    assert tokens_per_byte(ids, vocabulary) == 4 / 3
    assert tokens_per_byte(ids[[0, 0]] * 0, vocabulary) == 1  # no byte at all: no division by 0


def test_only_what_is_learned_from_counts():
    vocabulary = Characters("\nabé世🎭")
    ids = np.array(vocabulary.encode(TEXT), dtype=np.uint16)
    learned = LearnedTokens(np.array([0, 3]), np.array([2, 5]))  # a, é; 🎭 and its line's end
    assert tokens_per_byte(ids, vocabulary, learned) == 3 / (2 + 4 + 1)


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_a_uniform_model_needs_the_bits_of_its_choice(tmp_path, tokenizer):
    """The same text: what is counted by hand is what an evaluation of every token says."""
    run = run_on(tmp_path, SPEECHES * 12, tokenizer=tokenizer, vocab_size=300)
    for weight in run.model.parameters():
        weight.data.zero_()
    loss, *_ = measure_held_out(run, never)
    held_out = run.val_windows.ids.tolist()[1:]
    text = b"".join(run.vocabulary.bytes_of(i) for i in held_out)
    by_hand = len(held_out) * math.log2(len(run.vocabulary)) / len(text)
    assert run.bits_per_byte(loss) == pytest.approx(by_hand, rel=1e-6)


def test_subwords_and_characters_have_the_same_bytes_held_out(tmp_path):
    runs = [run_on(tmp_path, SPEECHES * 12, tokenizer=kind) for kind in ("char", "bpe")]
    bytes_held_out = [(len(run.val_windows.ids) - 1) / run.tokens_per_byte for run in runs]
    assert bytes_held_out[0] == pytest.approx(bytes_held_out[1], abs=16)
    assert runs[0].tokens_per_byte > 1.5 * runs[1].tokens_per_byte


def test_log_and_metrics_have_both_losses_in_both_units(tmp_path):
    run = run_on(tmp_path, SPEECHES * 12)
    run.state.marks.val_loss = 2.0
    facts = evaluation_facts(run, 1.0)
    assert facts["val_bits_per_byte"] == run.bits_per_byte(2.0)
    assert facts["val_bits_per_byte_full"] == run.bits_per_byte(1.0)
    assert evaluation_line(run, 1.0) == (
        f"val_loss 2.0000 ({run.bits_per_byte(2.0):.4f} bits per byte) | val_loss_full 1.0000 "
        f"over every validation token ({run.bits_per_byte(1.0):.4f} bits per byte)"
    )
    assert "full" not in evaluation_line(run)


def test_a_checkpoint_tells_its_bits_per_byte(tmp_path):
    run = run_on(tmp_path, SPEECHES * 12)
    run.state.marks.val_loss = 2.0
    run.state.progress.global_step = run.state.progress.position = 3
    loaded = load_model(parts.checkpoint_file(tmp_path, run), parts.CPU)
    assert loaded.val_bits_per_byte == run.bits_per_byte(2.0)


def test_the_text_with_learned_lines_counts_their_bytes(tmp_path):
    run = run_on(tmp_path, SPEECHES * 12, learn_from=["FOOL"])
    ids = run.val_windows.ids
    whole = load_tokens(tmp_path / "text.txt", tmp_path / "cache").vocabulary
    assert run.val_windows.learned is not None
    expected = tokens_per_byte(ids, whole, run.val_windows.learned)
    assert run.tokens_per_byte == expected != tokens_per_byte(ids, whole)
