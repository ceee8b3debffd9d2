"""All readers, in the order in which they are asked; the surest one reads a file."""

from chatgot.data.preparation.reader import Reader
from chatgot.data.preparation.readers.fountain import FOUNTAIN
from chatgot.data.preparation.readers.screenplay import SCREENPLAY
from chatgot.data.preparation.readers.stage_play import STAGE_PLAY
from chatgot.data.preparation.readers.subtitles import (
    ASS,
    MICRODVD_SUBTITLES,
    MPL2_SUBTITLES,
    SRT,
    TMP_SUBTITLES,
    VTT,
)

READERS: tuple[Reader, ...] = (
    VTT,
    SRT,
    ASS,
    MICRODVD_SUBTITLES,
    MPL2_SUBTITLES,
    TMP_SUBTITLES,
    FOUNTAIN,
    SCREENPLAY,
    STAGE_PLAY,
)
