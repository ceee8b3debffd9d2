"""All readers, in the order in which they are asked; the surest one reads a file."""

from chatgot.data.preparation.reader import Reader
from chatgot.data.preparation.readers.plain_text import PLAIN_TEXT

READERS: tuple[Reader, ...] = (PLAIN_TEXT,)
