r"""Commands of Telnet in a log: bytes that are no text.

A line is read without them. They stay visible as escapes (`\xff\xfb\x01`).
"""

import re

# Source: RFC 854 and RFC 855: IAC with WILL, WONT, DO or DONT and an option, and subnegotiations.
# No letters (яы, ÿû) would have such a control character after them.
_COMMAND = re.compile(
    rb"\xff[\xfb-\xfe][\x00-\x08\x0b\x0c\x0e-\x1f]|\xff\xfa[\x00-\x1f][^\r\n\xff]{0,99}\xff\xf0"
)


def has_commands(data: bytes) -> bool:
    return b"\xff" in data and _COMMAND.search(data) is not None


def without_commands(line: bytes) -> bytes:
    return _COMMAND.sub(b"", line) if b"\xff" in line else line


def commands_and_text(data: bytes) -> list[tuple[bytes, bool]]:
    """Return the parts of lines, and whether each is text."""
    parts = []
    end = 0
    for command in _COMMAND.finditer(data):
        parts.append((data[end : command.start()], True))
        parts.append((command[0], False))
        end = command.end()
    parts.append((data[end:], True))
    return [part for part in parts if part[0]]
