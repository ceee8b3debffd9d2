"""Values as JSON, for answers and for the events of a stream."""

import json

from fastapi.responses import Response


def as_bytes(value: object) -> bytes:
    """Return a value as JSON in UTF-8.

    A lone surrogate, which UTF-8 cannot hold, becomes its escape, as JSON has it.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


class JsonAnswer(Response):
    """An answer in JSON, whatever characters its texts have."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return as_bytes(content)
