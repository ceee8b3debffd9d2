"""Which speaker does a typed name mean?"""

from collections.abc import Sequence
from difflib import get_close_matches

from chatgot.data.prompts import is_speaker_name

AUTO = "auto"  # the model chooses who answers


def known_name(typed: str, known: Sequence[str]) -> str:
    """Return the known name that is meant, in whatever case it was typed; else it as it is."""
    words = " ".join(typed.split())
    if words in known:
        return words
    folded = words.casefold()
    return next((name for name in known if name.casefold() == folded), words)


def mistake_in_name(name: str) -> str:
    """Return what keeps a name from being a speaker's; empty: nothing does."""
    if is_speaker_name(name):
        return ""
    return f"{name!r} is no speaker's name: expected 1 to 40 characters, no colon, one line"


def nearest(word: str, known: Sequence[str], n: int = 3) -> list[str]:
    """Return up to n known names that are most like a word, in whatever case it was typed.

    First come those with a word that begins so, in their order; then those of like letters.
    """
    by_folded: dict[str, str] = {}
    for name in known:
        by_folded.setdefault(name.casefold(), name)
    folded = word.casefold()
    inside = [name for key, name in by_folded.items() if folded and f" {folded}" in f" {key}"]
    close = [by_folded[key] for key in get_close_matches(folded, by_folded, n=n, cutoff=0.6)]
    return list(dict.fromkeys([*inside, *close]))[:n]


def split_names(typed: str, known: Sequence[str]) -> list[str]:
    """Return the names in a line: separated by commas, or by spaces between known names.

    Without a comma, as many words as possible are taken as one known name; a word that begins none
    is a name of its own.
    """
    if "," in typed:
        names = [known_name(name, known) for name in typed.split(",") if name.strip()]
        return list(dict.fromkeys(names))
    folded = {name.casefold(): name for name in reversed(known)}
    words = typed.split()
    names = []
    while words:
        lengths = range(len(words), 0, -1)
        length = next((n for n in lengths if " ".join(words[:n]).casefold() in folded), 1)
        name = " ".join(words[:length])
        names.append(folded.get(name.casefold(), name))
        words = words[length:]
    return list(dict.fromkeys(names))
