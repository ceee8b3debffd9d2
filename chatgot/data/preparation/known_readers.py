"""All readers, in the order in which they are asked; the surest one reads a file."""

from chatgot.data.preparation.reader import Reader
from chatgot.data.preparation.readers.plain_text import PLAIN_TEXT
from chatgot.data.preparation.readers.speaker_lines import SPEAKER_LINES

READERS: tuple[Reader, ...] = (SPEAKER_LINES, PLAIN_TEXT)
