"""A step on fixed tensors, as a CUDA graph replays it, writes the texts of a plain one.

On a CPU the recorded function is called again; the real recording is tested in tests/gpu.
"""

import parts
import pytest

from chatgot.data.vocabulary import END_OF_TEXT_ID, Characters
from chatgot.model.gpt import build_model
from chatgot.sampling import decoding
from chatgot.sampling.controls import Controls
from chatgot.sampling.decoding import graphed_step
from chatgot.sampling.engine import Engine, Request


@pytest.mark.parametrize("architecture", ["gpt", "modern"])
def test_texts_of_a_replayed_step_equal_those_of_a_plain_one(architecture, monkeypatch):
    """Prompts of different lengths, beyond the context, with slots that become free."""
    keys = {"init_range": 1.0, "tie_embeddings": False, "architecture": architecture}
    vocabulary = Characters(parts.ALPHABET)
    net = build_model(parts.config(model=keys).model, len(vocabulary), parts.CPU, 4)
    controls = Controls(temperature=0, max_new_tokens=30, logit_bias={END_OF_TEXT_ID: -100.0})
    requests = [Request(tuple(range(1, 3 + i)), controls) for i in range(7)]
    recorded = []

    def call_again(launch, device):
        recorded.append(device)
        launch()
        return launch

    def texts() -> list[str]:
        completions = Engine(net, vocabulary, slots=3).complete(requests)
        return [completion.text for completion in completions]

    plain = texts()
    monkeypatch.setattr(decoding, "record_launches", call_again)
    monkeypatch.setattr(
        Engine, "_fastest_step", lambda it: graphed_step(it.model, it._cache, it.slots)
    )
    assert texts() == plain
    assert recorded == [parts.CPU]
    assert len(set(plain)) == 7
