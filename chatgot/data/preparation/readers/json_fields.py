"""Fields of JSON objects that may be missing or of any type, as exports and hostile files have."""

import math
from datetime import UTC, datetime


def text_field(item: object, *keys: str) -> str:
    """Return the first of these fields that is a text with something in it; empty: none."""
    if isinstance(item, dict):
        for key in keys:
            value = item.get(key)
            if isinstance(value, str) and value:
                return value
    return ""


def list_field(item: object, key: str) -> list[object]:
    """Return a field that is a list; empty: it is none."""
    value = item.get(key) if isinstance(item, dict) else None
    return value if isinstance(value, list) else []


def object_field(item: object, key: str) -> dict[str, object]:
    """Return a field that is an object; empty: it is none."""
    value = item.get(key) if isinstance(item, dict) else None
    return value if isinstance(value, dict) else {}


def number_of(value: object) -> float | None:
    """Return a number, or a text of one; None: it is neither, or endless."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def seconds_of(value: object) -> float | None:
    """Return the seconds of a time in milliseconds since 1970."""
    number = number_of(value)
    return None if number is None else number / 1000


def iso_time(text: str) -> float | None:
    """Return the seconds since 1970 of `2020-01-02T10:11:12.345+01:00`, by its own clock.

    The offset from UTC is left out of account, so that a day begins when it did there.
    """
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return None
