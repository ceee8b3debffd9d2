"""Whatever is added, cancelled and ranked in between, each text is the one it would be alone."""

import random

import harness
import pytest
from test_engine import asked, engine, ids, make_model, without_cache

from chatgot.sampling.engine import Engine, Request


def some_request(chance: random.Random) -> Request:
    """Return a request whose prompt shares its beginning with others, and may overflow."""
    length = chance.choice([0, 1, 2, 5, 7, 8, 9, 20])
    prompt = [1 + (i * chance.choice([1, 1, 1, 2])) % 17 for i in range(length)]
    temperature = chance.choice([0, 0, 1.0])
    return asked(prompt, chance.randrange(0, 25), temperature=temperature, seed=chance.randrange(9))


def scrambled(served: Engine, chance: random.Random) -> list:
    """Add, cancel, step and rank in a random order; return the completions."""
    completions = []
    for _ in range(90):
        action = chance.random()
        if action < 0.25:
            completions.append(served.add(some_request(chance)))
        elif action < 0.32 and completions:
            served.cancel(chance.choice(completions))
        elif action < 0.4:
            served.rank([1, 2, chance.randrange(1, 9)], [[3], [4, 5]])
        else:
            served.step()
        assert served.active <= served.slots
    while served.busy:
        served.step()
    return completions


@pytest.mark.parametrize("seed", [0, *harness.slow(1, 2, 3)])
def test_texts_of_a_random_schedule_are_those_alone(seed, monkeypatch):
    chance = random.Random(seed)
    monkeypatch.setattr("chatgot.sampling.engine.READ_AT_ONCE", chance.choice([1, 3, 256]))
    net = make_model(chance.choice(["gpt", "modern", "grouped"]))
    served = engine(net, slots=chance.choice([1, 2, 5]))
    served._kept.most = chance.choice([0, 10, 10_000])
    for completion in scrambled(served, chance):
        request = completion.request
        n = len(completion.tokens)
        assert completion.finish_reason in ("length", "cancelled")
        if completion.finish_reason == "length":
            assert n == request.controls.max_new_tokens
        if request.controls.temperature == 0:
            assert ids(completion) == without_cache(net, list(request.prompt) or [0], n)
        else:
            (alone,) = engine(net, slots=1).complete([request])
            assert ids(completion) == ids(alone)[:n]
        kept = sum(len(text.ids) for text in served._kept._texts)
        assert kept <= served._kept.most
