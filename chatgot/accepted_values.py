"""Which values a key accepts, in words: for messages and for docs/configuration.md."""

from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

# A limit's name in pydantic's metadata, and the words for it.
LIMITS = {
    "ge": "at least {}",
    "gt": "above {}",
    "le": "at most {}",
    "lt": "below {}",
    "min_length": "not empty",
    "max_length": "at most {} {parts}",
    "pattern": "in one line, without control characters",
}
KINDS: dict[object, str] = {int: "a whole number", float: "a number", str: "text"}


def accepted_values(field: FieldInfo, item: int | None = None) -> list[str]:
    """Return in words which values a field accepts, one text for each alternative.

    item: index of an item in a list or tuple; only its values are described.
    """
    return _alternatives(field.annotation, field.metadata, item)


def either(words: Sequence[str]) -> str:
    """Join alternatives: `a`, `a or b`, `a, b or c`."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(annotation: object, metadata: Sequence[object], item: int | None) -> list[str]:
    origin = get_origin(annotation)
    args = get_args(annotation)
    if origin is Annotated:
        return _alternatives(args[0], [*metadata, *args[1:]], item)
    if origin in (Union, UnionType):
        # an item is asked for: the list that holds it is not null
        given = [arg for arg in args if item is None or arg is not NoneType]
        return [words for arg in given for words in _alternatives(arg, metadata, item)]
    if origin is Literal:
        return [str(choice) for choice in args]
    if origin in (list, tuple):
        return _items(origin, args, item, metadata)
    if origin is dict:
        length = "".join(f" ({limit})" for limit in _limits(metadata))
        return [f"names{length}, each with {either(_alternatives(args[1], [], None))}"]
    if annotation is bool:
        return ["true", "false"]
    if annotation is NoneType:
        return ["null"] if item is None else []
    limits = ", ".join(_limits(metadata))
    return [f"{KINDS[annotation]} ({limits})" if limits else KINDS[annotation]]


def _items(
    kind: object, args: Sequence[object], item: int | None, metadata: Sequence[object]
) -> list[str]:
    if item is not None:
        return _alternatives(args[min(item, len(args) - 1)], [], None)
    each = either(_alternatives(args[0], [], None))
    length = f" of {len(args)} items" if kind is tuple else ""
    length += "".join(f" ({limit})" for limit in _limits(metadata, "items"))
    return [f"a list{length}, each {each}"]


def _limits(metadata: Sequence[object], parts: str = "characters") -> Iterator[str]:
    """Yield each limit in words. parts: what a length counts."""
    for part in metadata:
        # pydantic nests them: a FieldInfo inside Annotated has its own metadata
        for limit in getattr(part, "metadata", [part]):
            for name, words in LIMITS.items():
                value = getattr(limit, name, None)
                if value is not None:
                    yield words.format(_shown_limit(value), parts=parts)


def _shown_limit(limit: object) -> str:
    if isinstance(limit, int) and limit >= 10_000:
        return f"{limit:,}"
    return f"{limit:g}" if isinstance(limit, float) else str(limit)
