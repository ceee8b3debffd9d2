"""The compiled step is used where it computes the same, and nothing depends on a compiler."""

import logging

import parts
import pytest
import torch

from chatgot.data.vocabulary import END_OF_TEXT_ID, Characters
from chatgot.model.gpt import GPT, build_model
from chatgot.sampling.controls import Controls
from chatgot.sampling.decoding import CompileFailed
from chatgot.sampling.engine import Engine, Request

ALPHABET = "\n" + "".join(map(chr, range(97, 114)))
V = 1 + len(ALPHABET)
T = 80


def make_model(architecture: str) -> GPT:
    """Return a model with large weights, so that it makes varied choices without near ties."""
    keys = {"init_range": 1.0, "tie_embeddings": False, "max_seq_length": T}
    sections = parts.config(model={**keys, "architecture": architecture})
    return build_model(sections.model, V, parts.CPU, 4)


def texts(engine: Engine, n: int = 3) -> list[str]:
    """Return greedy texts that outgrow the context, from prompts of different lengths."""
    controls = Controls(temperature=0, max_new_tokens=T, logit_bias={END_OF_TEXT_ID: -100.0})
    requests = [Request(tuple(range(1, 3 + 4 * i)), controls) for i in range(n)]
    return [completion.text for completion in engine.complete(requests)]


@pytest.fixture
def net() -> GPT:
    return make_model("modern")


def engine(net: GPT) -> Engine:
    return Engine(net, Characters(ALPHABET), slots=4)


def test_a_step_that_computes_something_else_is_refused(net, monkeypatch):
    def wrong(step, **_):
        return lambda *arguments: step(*arguments) + torch.arange(V)

    monkeypatch.setattr(torch, "compile", wrong)
    served = engine(net)
    with pytest.raises(CompileFailed, match="logits differ"):
        served.compile()
    assert texts(served) == texts(engine(net))


def test_a_broken_compiler_is_one_plain_error(net, monkeypatch):
    def broken(step, **_):
        raise RuntimeError("no compiler\nand more lines")

    monkeypatch.setattr(torch, "compile", broken)
    served = engine(net)
    with pytest.raises(CompileFailed, match=r"^no compiler$"):
        served.compile()
    assert texts(served) == texts(engine(net))


def test_a_step_that_fails_later_is_one_warning_and_the_texts_are_right(net, monkeypatch, caplog):
    calls = []

    def failing(step, **_):
        def compiled(*arguments):
            calls.append(arguments)
            if len(calls) > 20:
                raise RuntimeError("an odd shape")
            return step(*arguments)

        return compiled

    monkeypatch.setattr(torch, "compile", failing)
    served = engine(net)
    with caplog.at_level(logging.WARNING):
        served.compile()
        assert texts(served) == texts(engine(net))
    assert len(calls) == 21
    assert [record.message for record in caplog.records] == [
        "sampling goes on without its compiled step: an odd shape"
    ]


def test_the_proof_looks_at_what_earlier_tokens_left(net, monkeypatch):
    """A step that forgets the cache is right for a first token only."""

    def forgetful(step, **_):
        def compiled(ids, positions, k, v, seen):
            return step(ids, positions, [t.clone() for t in k], [t.clone() for t in v], seen)

        return compiled

    monkeypatch.setattr(torch, "compile", forgetful)
    with pytest.raises(CompileFailed, match="logits differ"):
        engine(net).compile()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt", "modern"])
def test_texts_of_the_compiled_step_equal_those_of_the_eager_one(architecture, caplog):
    net = make_model(architecture)
    expected = texts(engine(net))
    assert len(set(expected)) == 3
    served = engine(net)
    try:
        served.compile()
        with caplog.at_level(logging.WARNING):
            assert texts(served) == expected
            assert texts(served, n=1) == expected[:1]
        own = [record for record in caplog.records if record.name.startswith("chatgot")]
        assert not own
    finally:
        torch.compiler.reset()
