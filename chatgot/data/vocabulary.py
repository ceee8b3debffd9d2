"""The tokens that a text consists of, and text <-> ids."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """One token per character; `characters[i]` is the text of id i."""

    characters: str

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. Raises: KeyError for a character outside the vocabulary."""
        ids = {character: i for i, character in enumerate(self.characters)}
        return [ids[character] for character in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.characters[i] for i in ids)

    def replace_unknown(self, text: str) -> tuple[str, str]:
        """Replace what is outside the vocabulary visibly; return the text and those characters."""
        known = set(self.characters)
        unknown = "".join(sorted(set(text) - known))
        substitute = next((mark for mark in "?_*#. " if mark in known), self.characters[0])
        replaced = "".join(character if character in known else substitute for character in text)
        return replaced, unknown
