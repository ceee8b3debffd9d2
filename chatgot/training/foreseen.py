"""What training would choose for a text, as far as its length says; the minutes decide the rest.

The rules are those of recipe.py; this machine is not measured.
"""

from pathlib import Path

import torch

from chatgot.data.lengths import split_index
from chatgot.data.own_text import Request, candidates, context_for, recipe, refuse_short
from chatgot.errors import ConfigError
from chatgot.model.gpt import GPT
from chatgot.training.recipe import Recipe, recipes_for_text, tokenizer_for, vocab_size_for


def foreseen(text: Path, n_characters: int, n_distinct: int) -> list[str]:
    """Return in a few lines which recipe, context and held-out part a text would get.

    text: need not exist; its name is in the message for one that is too short.
    n_distinct: different characters.
    """
    request = Request(text)
    possible = candidates(request)
    smallest = possible[0].config
    try:
        refuse_short(request, smallest, n_characters)
    except ConfigError as error:
        return [f"train cannot use it yet: {error}"]
    recipes = []
    contexts = {}
    for candidate in possible:
        context = context_for(request, candidate.config, n_characters)
        if context is None:
            continue
        config = recipe(request, candidate.name, [f"model.max_seq_length={context}"])
        with torch.device("meta"):  # only counted, never filled
            model = GPT(config.model, n_distinct + 1)
        recipes.append(Recipe(candidate.name, model.parameter_count()))
        contexts[candidate.name] = context
    test_split = smallest.data.test_split
    n_train = split_index(n_characters, test_split)
    largest = recipes_for_text(recipes, n_train)[-1]
    tokens = "tokens: characters"
    if tokenizer_for(n_train) == "bpe":
        most = vocab_size_for(n_train)
        tokens = f"tokens: subwords, at most {most:,}; characters if the minutes are many"
    return [
        tokens,
        f"train would take {largest.name} ({largest.parameters / 1e6:.1f} M parameters) at most, "
        "a smaller one if the minutes are few",
        f"context: {contexts[largest.name]} characters; held out: the last "
        f"{n_characters - n_train:,} characters, learned from: {n_train:,}",
    ]
