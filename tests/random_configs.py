"""Random configurations for hypothesis, drawn from the configuration's own models.

A new key is drawn by itself: its values come from its type and its bounds.
"""

import math
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pydantic.fields import FieldInfo

from chatgot.config import keys_of

LIMITS = ("ge", "gt", "le", "lt", "min_length", "max_length")
# Letters of several scripts, a character beyond U+FFFF, and what YAML and shells treat specially.
LETTERS = "abzKÄßжλ中😀 .-_'\"#:&*!%@,[]{}"
# A name of a folder: nothing in it leads out of the test's own folder.
FOLDER_LETTERS = "abzKÄßж中😀 -_'#&!%@,"
LONGEST_TEXT = 12
LONGEST_LIST = 3
# Up to here a key's only effect is cost: larger values take hours or gigabytes and do what smaller
# ones do. The large ends of these keys are tried by refusal alone.
MOST = {
    "model.d_model": 32,
    "model.n_layers": 3,
    "model.n_head": 8,
    "model.n_kv_head": 8,
    "model.head_dim": 16,
    "model.d_hid": 48,
    "model.max_seq_length": 32,
    "training.batch_size": 6,
    "training.accumulate_grad_batches": 4,
    "training.dynamic_batch_size.initial": 24,
    "training.dynamic_batch_size.minimum": 24,
    "training.dynamic_batch_size.maximum": 24,
    "training.lora.rank": 32,
    "training.eval_batches": 20,
    "training.threads": 1,  # where other programs run, two wait for each other
    "sampling.max_new_tokens": 20,
}

# Drawn more often, since most other values do not go together and are refused.
USUAL: dict[str, list[Any]] = {
    "device": ["cpu", "auto"],
    "model.d_model": [8, 16, 32],
    "model.n_head": [1, 2, 4],
    "model.n_kv_head": [None, 1],
    "model.head_dim": [None, 8],
    "training.lora.rank": [None, 1, 8],
    "training.lora.targets": [None, ["qkv", "down"]],
    "training.dynamic_batch_size.initial": ["auto", 2],
    "training.dynamic_batch_size.minimum": [1],
    "training.dynamic_batch_size.maximum": [None],
    "training.learning_rate": [1e-3, 1.0],
    "data.test_split": [0.05, 0.3],
}


def configurations(text_path: str, speakers: Sequence[str]) -> SearchStrategy[dict[str, Any]]:
    """Return a strategy for dictionaries of some dotted keys with accepted values.

    Each key alone is within its bounds; together they may be refused.

    text_path: a text that exists; speakers: those who speak in it.
    """
    usual_values = USUAL | {
        "data.path": [text_path],
        "data.learn_from": [None, *([name] for name in speakers)],
    }

    def of_key(name: str, field: FieldInfo) -> SearchStrategy[Any]:
        letters = FOLDER_LETTERS if name.startswith(("paths.", "data.path")) else LETTERS
        drawn = _values(field.annotation, field.metadata, MOST.get(name), letters)
        if name == "data.path":
            drawn = drawn.filter(lambda path: path is not None)  # the default text takes a minute
        usual = usual_values.get(name)
        if usual is None:
            return drawn
        few = st.sampled_from(usual)
        return st.one_of(few, few, few, drawn)

    strategies = {name: of_key(name, field) for name, field in keys_of()}

    @st.composite
    def draw_some(draw: st.DrawFn) -> dict[str, Any]:
        # few keys: one extreme value meets usual ones; many: extreme values meet each other
        names = draw(
            st.one_of(
                st.sets(st.sampled_from(sorted(strategies)), max_size=6),
                st.sets(st.sampled_from(sorted(strategies)), min_size=8, max_size=30),
            )
        )
        return {name: draw(strategies[name]) for name in sorted(names)}

    return draw_some()


def _values(
    annotation: object, metadata: Sequence[object], most: int | None, letters: str
) -> SearchStrategy[Any]:
    """Return a strategy for a type's accepted values; `most` is the largest number drawn."""
    origin = get_origin(annotation)
    args = get_args(annotation)
    if origin is Annotated:
        return _values(args[0], [*metadata, *args[1:]], most, letters)
    if origin in (Union, UnionType):
        return st.one_of(*(_values(arg, metadata, most, letters) for arg in args))
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.tuples(*(_values(arg, [], most, letters) for arg in args)).map(list)
    limits = _limits(metadata)
    if origin is list:
        least = limits.get("min_length", 0)
        items = _values(args[0], [], most, letters)
        return st.lists(items, min_size=least, max_size=max(least, LONGEST_LIST))
    if origin is dict:
        keys, values = (_values(arg, [], most, letters) for arg in args)
        return st.dictionaries(keys, values, min_size=limits.get("min_length", 0), max_size=3)
    if annotation is NoneType:
        return st.none()
    if annotation is bool:
        return st.booleans()
    if annotation is str:
        least = limits.get("min_length", 0)
        return st.text(letters, min_size=least, max_size=LONGEST_TEXT)
    assert annotation in (int, float), annotation
    return _numbers(annotation, limits, most)


def _limits(metadata: Sequence[object]) -> dict[str, Any]:
    """Return a type's limits; pydantic nests them inside Annotated."""
    parts = [limit for part in metadata for limit in getattr(part, "metadata", [part])]
    return {
        name: getattr(part, name)
        for part in parts
        for name in LIMITS
        if getattr(part, name, None) is not None
    }


def _numbers(kind: object, limits: dict[str, Any], most: int | None) -> SearchStrategy[Any]:
    """Return a strategy for numbers of a range: its ends, and all magnitudes between them."""
    if kind is int:
        low = limits["ge"]
        high = limits["le"] if "le" in limits else limits["lt"] - 1
        high = high if most is None else min(high, most)
        return st.one_of(
            st.sampled_from([low, high]),
            st.integers(low, min(high, low + 32)),
            st.integers(0, (high - low).bit_length()).map(lambda n: min(high, low + 2**n)),
            st.integers(low, high),
        )
    low = float(limits["ge"])
    high = limits["le"] if "le" in limits else math.nextafter(limits["lt"], -math.inf)
    smallest = max(low, 1e-38)
    exponents = st.floats(math.log10(smallest), math.log10(high))
    return st.one_of(
        st.sampled_from([low, high]),
        exponents.map(lambda e: min(high, max(low, 10.0**e))),
        st.floats(low, high, allow_subnormal=False),
    )
