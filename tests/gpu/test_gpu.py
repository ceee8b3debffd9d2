"""A run keeps its promises on a CUDA device as it does on a CPU.

CHATGOT_GPU_TESTS_ON=cpu rehearses them without a card, but for those of its memory and graphs.
"""

import contextlib
import functools
import gc
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import parts
import pytest
import starts
import torch
from torch import nn

from chatgot.data.token_cache import load_tokens
from chatgot.data.vocabulary import END_OF_TEXT_ID, Characters
from chatgot.data.windows import ValidationWindows, split_index
from chatgot.machine.device import DTYPES
from chatgot.machine.measured import peak_for_mfu, product_peak
from chatgot.model.gpt import GPT, build_model
from chatgot.numerics.accumulation import add_gradients
from chatgot.run.assembly import assemble
from chatgot.sampling.controls import Controls
from chatgot.sampling.decoding import decode_step
from chatgot.sampling.engine import Engine, Request
from chatgot.sampling.loading import load_model
from chatgot.training.evaluation import evaluate

DEVICE = os.environ.get("CHATGOT_GPU_TESTS_ON", "cuda")
NO_CARD = not torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(NO_CARD and DEVICE == "cuda", reason="torch finds no CUDA device"),
]
needs_card = pytest.mark.skipif(NO_CARD, reason="there is no card whose memory or graphs to test")

STEPS = 12
RESUMED_STEP = 5
PRECISIONS = {
    "fp32": {"mixed_precision": False},
    "bf16": {"mixed_precision": True, "precision_dtype": "bf16"},
    "fp16": {"mixed_precision": True, "precision_dtype": "fp16"},
}
CALM = {"learning_rate": 1e-3, "min_learning_rate": 1e-3}  # small differences stay small

# Relative error of losses after the same sequences in other micro-batches. cuBLAS picks kernels by
# shape, and they sum in different orders, so this is wider than the 1e-5 of the tests on a CPU.
LOSS_TOLERANCE = 1e-4

# losses of a run without dropout that goes on elsewhere, a few small steps later
ELSEWHERE_TOLERANCE = 1e-3

# LARGE sequences at once keep more than 2 GiB of activations, above LIMIT; half of them fit
LIMIT = 3 << 29
LARGE = 2048
LARGE_MODEL = {
    "d_model": 64,
    "n_layers": 4,
    "n_head": 2,
    "d_hid": 256,
    "max_seq_length": 64,
    "dropout": 0.0,
}


def train(folder: Path, *arguments: str, on: str = DEVICE, **sections: Any) -> Path:
    """Train with the real script in this process; return the folder.

    Eager and with a fixed micro-batch, where the test asks for nothing else: runs that are compared
    must not measure for themselves.
    """
    folder.mkdir(exist_ok=True)
    fixed = {"compile": False, "micro_batch_size": 2}
    sections["training"] = {**fixed, **sections.get("training", {})}
    config = harness.write_config(folder, device=on, **sections)
    assert harness.train_here(folder, "--config", config.name, *arguments) == 0
    return folder


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind of the only run in `folder`."""
    return [event for event in json_lines(folder, "events.jsonl") if event["kind"] == kind]


def json_lines(folder: Path, name: str) -> list[dict[str, Any]]:
    (path,) = (folder / "logs" / "tensorboard").glob(f"*/{name}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def final(folder: Path, step: int = STEPS) -> dict[str, Any]:
    """Return the checkpoint of a run's last step."""
    return harness.load(harness.checkpoints(folder)[step])


def trained_parts(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return what must be bit-equal between two runs: all that training changes but the clock."""
    state = {name: part for name, part in checkpoint["state"].items() if name != "run_id"}
    clocks = ("time_s", "tokens_per_s")
    state["progress"] = {k: v for k, v in state["progress"].items() if k not in clocks}
    names = ("model_state_dict", "optimizer_state_dict", "scaler_state_dict", "loss")
    return {name: checkpoint[name] for name in names} | {"state": state}


def losses(folder: Path) -> list[float]:
    return [row["train_loss"] for row in harness.rows(folder) if row["step"] > 0]


@contextlib.contextmanager
def made_up_limit(sequences: int) -> Iterator[list[int]]:
    """Make a forward pass of more than `sequences` training sequences run out of memory.

    Yields the sizes that have failed.
    """
    failed: list[int] = []

    def fail_when_large(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, GPT) and module.training and len(inputs[0]) > sequences:
            failed.append(len(inputs[0]))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    handle = nn.modules.module.register_module_forward_pre_hook(fail_when_large)
    try:
        yield failed
    finally:
        handle.remove()


@contextlib.contextmanager
def real_limit(size: int) -> Iterator[None]:
    """Let this process take at most `size` bytes on the device."""
    gc.collect()  # free the runs of other tests
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(size / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of an undisturbed run in a precision, made once."""

    @functools.cache
    def run_in(precision: str) -> Path:
        return train(tmp_path_factory.mktemp(precision), training=PRECISIONS[precision])

    return run_in


def copy_up_to(undisturbed: Path, folder: Path, step: int) -> Path:
    """Copy a run as it was when the file of `step` was the newest; return that file."""
    shutil.copytree(undisturbed, folder)
    for other, path in harness.checkpoints(folder).items():
        if other > step:
            path.unlink()
    return harness.checkpoints(folder)[step]


# --------------------------------------------------------------------------------------------------
# Exact resume


@pytest.mark.parametrize("precision", PRECISIONS)
def test_run_computes_on_the_device_in_the_precision_asked_for(straight, precision):
    folder = straight(precision)
    (start,) = events(folder, "start")
    assert start["precision"] == precision
    assert start["device"].startswith(DEVICE)
    assert all(math.isfinite(loss) for loss in losses(folder))
    assert losses(folder)[-1] < losses(folder)[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(straight, precision, tmp_path):
    undisturbed = straight(precision)
    folder = tmp_path / "resumed"
    path = copy_up_to(undisturbed, folder, RESUMED_STEP)
    train(folder, "--resume_from", str(path), training=PRECISIONS[precision])
    assert len(events(folder, "resume")) == 1
    assert harness.same(trained_parts(final(folder)), trained_parts(final(undisturbed)))
    assert losses(folder) == losses(undisturbed)


def test_run_with_lora_trains_few_weights_and_resumes_bit_for_bit(straight, tmp_path):
    """The base is the last checkpoint of a run; written for GPUs, not run on one yet."""
    base = harness.checkpoints(straight("bf16"))[STEPS].resolve()
    training = PRECISIONS["bf16"] | {"lora": {"rank": 2}}
    undisturbed = train(tmp_path / "whole", "--init_from", str(base), training=training)
    stored = final(undisturbed)["model_state_dict"]
    assert stored
    assert all("lora" in name for name in stored)
    folder = tmp_path / "resumed"
    path = copy_up_to(undisturbed, folder, RESUMED_STEP)
    train(folder, "--resume_from", str(path), training=training)
    assert harness.same(trained_parts(final(folder)), trained_parts(final(undisturbed)))


def test_resume_in_a_new_process_equals_an_uninterrupted_run(straight, tmp_path):
    undisturbed = straight("bf16")
    folder = tmp_path / "resumed"
    path = copy_up_to(undisturbed, folder, RESUMED_STEP)
    done = harness.run_script(folder, "--config", "tiny.yaml", "--resume_from", str(path))
    assert done.returncode == 0, done.stderr
    assert harness.same(trained_parts(final(folder)), trained_parts(final(undisturbed)))


def test_fp16_run_scales_its_loss(straight):
    checkpoint = final(straight("fp16"))
    assert checkpoint["scaler_state_dict"]["scale"] > 1
    assert checkpoint["state"]["modes"]["precision"] == "fp16"
    assert checkpoint["state"]["progress"]["skipped_steps"] < STEPS


def test_muon_run_resumes_bit_for_bit(tmp_path):
    settings = {"optimizer": "muon", **PRECISIONS["bf16"]}
    undisturbed = train(tmp_path / "straight", training=settings)
    folder = tmp_path / "resumed"
    path = copy_up_to(undisturbed, folder, RESUMED_STEP)
    train(folder, "--resume_from", str(path), training=settings)
    assert harness.same(trained_parts(final(folder)), trained_parts(final(undisturbed)))


# --------------------------------------------------------------------------------------------------
# Memory


def dynamic(size: int, **training: Any) -> dict[str, Any]:
    """Return the training section of a run whose micro-batch begins at `size` and never grows."""
    return {
        **CALM,
        "batch_size": size,
        "accumulate_grad_batches": 1,
        "dynamic_batch_size": {"enabled": True, "initial": size, "growth_interval_steps": 1000},
        **training,
    }


def test_out_of_memory_error_shrinks_the_micro_batch_and_goes_on(tmp_path):
    fixed = {**CALM, "batch_size": 8, "accumulate_grad_batches": 1}
    model = {"dropout": 0.0}
    undisturbed = train(tmp_path / "straight", model=model, training=fixed)
    with made_up_limit(3) as failed:
        shrunk = train(tmp_path / "shrunk", model=model, training=dynamic(8))
    assert failed == [8, 4]
    changes = [(e["old"], e["new"], e["reason"]) for e in events(shrunk, "micro_batch")]
    assert changes == [(8, 4, "oom"), (4, 2, "oom")]
    assert final(shrunk)["state"]["micro_batch"]["size"] == 2
    assert losses(shrunk) == pytest.approx(losses(undisturbed), abs=LOSS_TOLERANCE)


@needs_card
def test_micro_batch_that_cannot_fit_shrinks_until_it_does(tmp_path):
    steps = 4
    quiet = {"max_steps": steps, "warmup_steps": 0, "sample_interval_steps": None}
    with real_limit(LIMIT):
        folder = tmp_path / "large"
        folder.mkdir()
        text = harness.make_text(200_000)  # enough for one batch of LARGE sequences
        (folder / "text.txt").write_text(text, encoding="utf-8")
        # an evaluation of LARGE sequences must fit, or shrink on its own
        train(folder, model=LARGE_MODEL, training=dynamic(LARGE, **quiet))
    shrinks = [e for e in events(folder, "micro_batch") if e["reason"] == "oom"]
    assert shrinks
    assert shrinks[0]["old"] == LARGE
    state = final(folder, steps)["state"]
    assert state["micro_batch"]["size"] == shrinks[-1]["new"] < LARGE
    assert state["progress"]["global_step"] == steps
    assert state["progress"]["skipped_steps"] == 0
    assert all(math.isfinite(loss) for loss in losses(folder))


# --------------------------------------------------------------------------------------------------
# Proofs and observation


def test_gradient_checkpointing_is_proven_or_refused_with_a_reason(tmp_path):
    folder = train(tmp_path / "run", training={"gradient_checkpointing": True})
    told = events(folder, "gradient_checkpointing")
    assert told
    assert told[0]["reason"]
    failed = final(folder)["state"]["modes"]["gradient_checkpointing_failed"]
    assert failed == (not told[-1]["on"] and told[0]["on"])


def test_gradient_checkpointing_changes_no_bit_when_it_is_on(tmp_path):
    plain = train(tmp_path / "plain")
    folder = train(tmp_path / "recomputing", training={"gradient_checkpointing": True})
    if not events(folder, "gradient_checkpointing")[-1]["on"]:
        pytest.skip("its proof failed here, so it stays off")
    names = ("model_state_dict", "optimizer_state_dict", "loss")
    expected = final(plain)
    recomputed = final(folder)
    assert harness.same({n: recomputed[n] for n in names}, {n: expected[n] for n in names})


def test_evaluation_and_samples_leave_training_bit_equal(tmp_path):
    often = {"eval_interval": 1, "sample_interval_steps": 1, "save_checkpoint_steps": 1}
    observed = train(tmp_path / "observed", training=often)
    alone = train(tmp_path / "alone", training=dict.fromkeys(often))
    names = ("model_state_dict", "optimizer_state_dict", "loss")
    expected = final(alone)
    seen = final(observed)
    assert harness.same({n: seen[n] for n in names}, {n: expected[n] for n in names})


def test_samples_are_generated_on_the_device(straight):
    folder = straight("fp32")
    samples = json_lines(folder, "samples.jsonl")
    assert {sample["step"] for sample in samples} == {6, STEPS}
    assert all(sample["text"] for sample in samples if sample["step"] == STEPS)


@needs_card
def test_texts_of_the_cuda_graph_equal_those_without_it(monkeypatch, caplog):
    """Prompts of different lengths, beyond the context, with slots that become free."""
    keys = {"init_range": 1.0, "tie_embeddings": False, "architecture": "modern"}
    sections = parts.config(model=keys)
    vocabulary = Characters(parts.ALPHABET)
    net = build_model(sections.model, len(vocabulary), torch.device("cuda"), 4)
    controls = Controls(temperature=0, max_new_tokens=30, logit_bias={END_OF_TEXT_ID: -100.0})
    requests = [Request(tuple(range(1, 3 + i)), controls) for i in range(7)]

    def texts() -> list[str]:
        completions = Engine(net, vocabulary, slots=3).complete(requests)
        return [completion.text for completion in completions]

    graphed = texts()
    assert not [record for record in caplog.records if "CUDA graph" in record.message]
    monkeypatch.setattr(Engine, "_fastest_step", lambda engine: decode_step(engine.model))
    assert graphed == texts()
    assert len(set(graphed)) == 7


def test_loss_on_held_out_text_is_that_of_the_same_weights_on_a_cpu(straight):
    folder = straight("fp32")
    expected = harness.rows(folder)[-1]["val_loss_full"]
    path = harness.checkpoints(folder)[STEPS]
    loaded = load_model(path, torch.device("cpu"))
    tokens = load_tokens(folder / "text.txt", folder / "cache-of-the-test")
    held_out = tokens.ids[split_index(len(tokens.ids), loaded.config.data.test_split) :]
    shape = loaded.config.model
    cpu = torch.device("cpu")
    windows = ValidationWindows(held_out, shape.max_seq_length, len(tokens.vocabulary), cpu)
    found = evaluate(loaded.model, windows.every_token(8), cpu, "fp32", lambda: False)
    assert found.loss == pytest.approx(expected, rel=LOSS_TOLERANCE)


def test_loaded_model_computes_on_the_device_what_it_does_on_a_cpu(straight):
    path = harness.checkpoints(straight("fp32"))[STEPS]
    here = load_model(path, torch.device(DEVICE)).model
    elsewhere = load_model(path, torch.device("cpu")).model
    x = torch.arange(16)[None]  # (1, T)
    logits = here(x.to(DEVICE))[0]  # (1, T, V)
    assert logits.device.type == DEVICE
    torch.testing.assert_close(logits.cpu(), elsewhere(x)[0], rtol=1e-4, atol=1e-4)


def test_chat_writes_the_same_text_twice_on_the_device(straight, capsys):
    controls = ("--max_new_tokens", "30", "--seed", "3", "--device", DEVICE)
    texts = []
    for _ in range(2):
        assert starts.run_tool("chat", straight("bf16"), "--prompt", "KING:\n", *controls) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(texts[0]) > len("KING:\n")


def test_model_trained_on_the_device_is_exported_with_its_proof(straight, tmp_path, capsys):
    target = str(tmp_path / "out")
    asked = ("tiny", "--to", target, "--format", "safetensors")
    assert starts.run_tool("export", straight("bf16"), *asked) == 0
    assert "proof: " in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_dry_run_says_what_a_run_would_take(tmp_path):
    config = harness.write_config(tmp_path, device=DEVICE)
    done = harness.run_script(tmp_path, "--config", config.name, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "parameters: " in done.stdout
    assert "tokens/s" in done.stdout
    assert not harness.checkpoints(tmp_path)


# --------------------------------------------------------------------------------------------------
# From the device to a CPU, and back


@pytest.mark.parametrize(("first", "second"), [(DEVICE, "cpu"), ("cpu", DEVICE)])
def test_run_goes_on_elsewhere_and_says_it_is_not_bit_exact(first, second, tmp_path):
    sections = {"model": {"dropout": 0.0}, "training": CALM}  # masks come from other generators
    undisturbed = train(tmp_path / "undisturbed", on=first, **sections)
    folder = tmp_path / "moved"
    path = copy_up_to(undisturbed, folder, RESUMED_STEP)
    train(folder, "--resume_from", str(path), on=second, **sections)
    (resumed,) = events(folder, "resume")
    assert resumed["device"].startswith(second)
    if first != second:
        assert "not bit-exact" in harness.warnings(folder)
    assert losses(folder) == pytest.approx(losses(undisturbed), abs=ELSEWHERE_TOLERANCE)


# --------------------------------------------------------------------------------------------------
# What a card chooses for itself: written for GPUs, not run on one yet

CHOOSING = {"batch_size": 2, "accumulate_grad_batches": 4, "micro_batch_size": "auto"}


def choices(folder: Path, what: str) -> list[dict[str, Any]]:
    return [event for event in events(folder, "choice") if event["what"] == what]


@needs_card
def test_card_chooses_its_micro_batch_once_and_a_resume_keeps_it(machine, tmp_path):
    undisturbed = train(tmp_path / "straight", training=CHOOSING)
    (choice,) = choices(undisturbed, "micro_batch")
    size = final(undisturbed)["state"]["micro_batch"]["size"]
    assert choice["chosen"] == size
    assert {int(tried) for tried in choice["measured"]} <= {2, 4, 8}
    assert any(key.startswith("micro-batch of 8 from 2") for key in json.loads(machine.read_text()))
    again = train(tmp_path / "again", training=CHOOSING)
    assert harness.same(trained_parts(final(again)), trained_parts(final(undisturbed)))
    folder = tmp_path / "resumed"
    path = copy_up_to(undisturbed, folder, RESUMED_STEP)
    machine.unlink()
    train(folder, "--resume_from", str(path), training=CHOOSING)
    assert harness.same(trained_parts(final(folder)), trained_parts(final(undisturbed)))


@needs_card
def test_auto_recomputes_nothing_where_the_card_has_room(tmp_path):
    folder = train(tmp_path / "run", training={"gradient_checkpointing": "auto"})
    (choice,) = choices(folder, "gradient_checkpointing")
    assert choice["chosen"] is False
    assert choice["measured"]["needed_mib"] > 0
    assert final(folder)["state"]["modes"]["card"] == torch.cuda.get_device_name(0)


@needs_card
def test_auto_recomputes_where_a_micro_batch_does_not_fit(machine, tmp_path):
    """Then the micro-batch is as large as fits, and the run goes on with it."""
    steps = 4
    keys = {
        **CALM,
        "batch_size": LARGE,
        "micro_batch_size": "auto",
        "accumulate_grad_batches": 1,
        "gradient_checkpointing": "auto",
        "max_steps": steps,
        "warmup_steps": 0,
        "sample_interval_steps": None,
    }
    with real_limit(LIMIT):
        folder = tmp_path / "large"
        folder.mkdir()
        (folder / "text.txt").write_text(harness.make_text(200_000), encoding="utf-8")
        train(folder, model=LARGE_MODEL, training=keys)
    (choice,) = choices(folder, "gradient_checkpointing")
    assert choice["chosen"] is True
    assert final(folder, steps)["state"]["progress"]["skipped_steps"] == 0
    assert all(math.isfinite(loss) for loss in losses(folder))


@needs_card
def test_compiled_blocks_that_recompute_are_proven_or_refused(tmp_path):
    keys = {"compile": True, "gradient_checkpointing": True, **PRECISIONS["bf16"]}
    folder = train(tmp_path / "run", training=keys)
    assert events(folder, "compile")[-1]["on"]
    reason = events(folder, "gradient_checkpointing")[0]["reason"]
    assert "is rounding" in reason or "a recomputation differed" in reason
    assert losses(folder)[-1] < losses(folder)[0]


@needs_card
def test_out_of_memory_shrinks_compiled_micro_batches_and_compiles_anew(machine, tmp_path):
    keys = {**CHOOSING, "compile": True, "batch_size": 8, "accumulate_grad_batches": 1}
    machine.parent.mkdir(parents=True, exist_ok=True)
    with made_up_limit(8) as failed:
        folder = train(tmp_path / "run", training=keys | {"max_steps": 2})
    assert failed == []
    path = harness.checkpoints(folder)[2]
    with made_up_limit(3) as failed:
        train(folder, "--resume_from", str(path), training=keys | {"max_steps": 4})
    size = final(folder, 4)["state"]["micro_batch"]["size"]
    assert size <= 3
    assert bool(failed) is (final(folder, 2)["state"]["micro_batch"]["size"] > 3)
    assert final(folder, 4)["state"]["modes"]["compiled"]


@needs_card
@pytest.mark.parametrize("later", [(), (0.5, 0.25)])
def test_micro_batches_do_not_wait_for_the_device(later):
    """All that a step queues is queued at once; the wait is in update_weights."""
    config = parts.config(model={"dropout": 0.1}, training={"micro_batch_size": 2}, device=DEVICE)
    run = assemble(config, parts.tokens(), torch.device(DEVICE), None)
    starts = run.train_windows.starts(0, 8)

    def step() -> None:
        add_gradients(
            run.model, run.train_windows, starts, 2, (1, 2), lambda loss: loss, later=later
        )

    step()  # the first one loads kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_card
def test_batches_are_not_overwritten_while_they_are_copied():
    """Many in flight behind a long kernel: each must arrive as it was on the host."""
    on_card = parts.windows(T=64)
    on_card.device = torch.device(DEVICE)
    on_host = parts.windows(T=64)
    starts = [on_host.starts(position, 4) for position in range(200)]
    torch.cuda._sleep(10**8)
    sent = [on_card.batch(some) for some in starts]
    for (x, y), some in zip(sent, starts, strict=True):
        expected_x, expected_y = on_host.batch(some)
        assert torch.equal(x.cpu(), expected_x)
        assert torch.equal(y.cpu(), expected_y)


@pytest.mark.parametrize("size", [4096, 6144, 12288])
@needs_card
def test_no_product_of_another_size_beats_the_peak(size):
    device = torch.device(DEVICE)
    peak, name = peak_for_mfu(device)
    other = product_peak(device, DTYPES[name], size=size)
    assert other < 1.05 * peak  # timings of a card differ by a few percent


# --------------------------------------------------------------------------------------------------
# From the device to a CPU


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@needs_card
def test_checkpoint_of_the_device_starts_a_run_on_the_cpu(straight, precision, tmp_path):
    folder = straight(precision)
    path = harness.checkpoints(folder)[STEPS]
    config = harness.write_config(tmp_path, device="cpu", training={"max_steps": 2})
    assert harness.train_here(tmp_path, "--config", config.name, "--init_from", str(path)) == 0
    (start,) = events(tmp_path, "start")
    assert start["device"].startswith("cpu")
    assert losses(tmp_path)[0] < losses(folder)[0]  # it starts with the trained weights


@needs_card
def test_compiled_run_resumes_bit_for_bit(tmp_path):
    settings = {"compile": True, **PRECISIONS["bf16"]}
    undisturbed = train(tmp_path / "straight", training=settings)
    folder = tmp_path / "resumed"
    path = copy_up_to(undisturbed, folder, RESUMED_STEP)
    train(folder, "--resume_from", str(path), training=settings)
    assert final(folder)["state"]["modes"]["compiled"]
    assert harness.same(trained_parts(final(folder)), trained_parts(final(undisturbed)))


@needs_card
def test_compiled_blocks_train_on_the_device_or_stay_eager(tmp_path):
    folder = train(tmp_path / "run", training={"compile": True, **PRECISIONS["bf16"]})
    told = events(folder, "compile")
    assert told
    assert told[-1]["on"] == final(folder)["state"]["modes"]["compiled"]
    assert losses(folder)[-1] < losses(folder)[0]
