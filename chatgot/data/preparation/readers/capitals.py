"""Whether words are written in capitals, as names in scripts are."""

# Letters that have no capital, and names such as McBEN
SMALL_IN_CAPITALS = str.maketrans("", "", "ßŉǰ")


def is_in_capitals(words: str) -> bool:
    """Return whether words have capital letters, and none that should be one."""
    if words.isupper():
        return True
    return words.translate(SMALL_IN_CAPITALS).replace("Mc", "").isupper()
