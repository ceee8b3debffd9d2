"""From a prompt to text, one token at a time, with a key/value cache.

Letters: T tokens, V vocabulary.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from chatgot.config import SamplingConfig
from chatgot.data.vocabulary import Vocabulary
from chatgot.model.gpt import GPT, KeyValueCache, evaluating


def generate(
    model: GPT,
    ids: list[int],
    sampling: SamplingConfig,
    generator: torch.Generator,
    *,
    end_of_text: int | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids that continue `ids`.

    When the context is full, its older half is forgotten. All random numbers come from `generator`.

    ids: the prompt, at least one id. generator: on the CPU.
    end_of_text: the id that ends the text; it is not yielded. None: no id ends it.
    """
    T = model.cfg.max_seq_length
    device = next(model.parameters()).device
    context = ids[-T:]
    caches: list[KeyValueCache] | None = None
    for _ in range(sampling.max_new_tokens):
        with evaluating(model):
            if caches is None or caches[0].length >= T:
                # process the whole context: at the start, and after forgetting the older half
                context = context[-T:] if caches is None else context[-(T // 2 + 1) :]
                caches = [KeyValueCache() for _ in range(model.cfg.n_layers)]
                x = torch.tensor([context], device=device)  # (1, T)
            else:
                x = torch.tensor([context[-1:]], device=device)  # (1, 1)
            logits, _ = model(x, caches=caches)  # (1, T, V)
            token = pick_token(logits[0, -1].float().cpu(), sampling, generator)
        if token == end_of_text:
            return
        context.append(token)
        yield token


def pick_token(logits: Tensor, sampling: SamplingConfig, generator: torch.Generator) -> int:
    """Draw one id from logits (V,) with temperature, top_k and top_p; temperature 0 is greedy."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    # subtracting the maximum first prevents an overflow at low temperatures
    logits = (logits - logits.max()) / sampling.temperature
    if sampling.top_k is not None:
        likeliest = logits.topk(min(sampling.top_k, len(logits))).indices
        excluded = torch.full_like(logits, -torch.inf)
        logits = excluded.index_copy(0, likeliest, logits[likeliest])
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p is not None:  # nucleus sampling, Holtzman et al., arXiv:1904.09751
        ordered, order = probabilities.sort(descending=True)
        more_likely = ordered.cumsum(dim=-1) - ordered  # 0 for the first, which is always kept
        outside = more_likely >= sampling.top_p
        probabilities = probabilities.index_fill(0, order[outside], 0.0)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def continue_text(
    model: GPT,
    vocabulary: Vocabulary,
    prompt: str,
    sampling: SamplingConfig,
    *seed: int,
    end_of_text: int | None = None,
) -> Iterator[str]:
    """Yield the text that continues `prompt`, token by token; equal seeds give equal texts.

    All characters of the prompt must be in the vocabulary (see `Vocabulary.replace_unknown`).

    seed: one or more numbers. end_of_text: as in `generate`.
    """
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(state)
    ids = vocabulary.encode(prompt)
    for token in generate(model, ids, sampling, generator, end_of_text=end_of_text):
        yield vocabulary.decode([token])
