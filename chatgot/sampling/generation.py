"""The samples of a run: the model continues some prompts while it is in training."""

from collections.abc import Iterator, Sequence

from chatgot.config import SamplingConfig
from chatgot.data.vocabulary import Vocabulary
from chatgot.model.gpt import GPT
from chatgot.sampling.controls import Controls
from chatgot.sampling.engine import Engine, Request


def controls_of(sampling: SamplingConfig, seed: int) -> Controls:
    """Return the controls that a configuration's `sampling` section asks for."""
    return Controls(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        max_new_tokens=sampling.max_new_tokens,
        seed=seed,
    )


def continue_texts(
    model: GPT,
    vocabulary: Vocabulary,
    prompts: Sequence[str],
    sampling: SamplingConfig,
    seed: int,
) -> Iterator[list[str]]:
    """Yield, after each step, the texts so far that continue the prompts; the model is untouched.

    Each prompt has noise of its own, which is the same in all calls with one seed: what differs
    between two samples of a run is the model.

    Raises: KeyError for a character outside the vocabulary (see `Vocabulary.replace_unknown`).
    """
    engine = Engine(model, vocabulary, slots=max(1, len(prompts)))
    controls = controls_of(sampling, seed)
    requests = [
        Request(tuple(vocabulary.encode(prompt)), controls, choice=i)
        for i, prompt in enumerate(prompts)
    ]
    completions = [engine.add(request) for request in requests]
    while engine.busy:
        engine.step()
        yield [completion.text for completion in completions]
