"""All readers, in the order in which they are asked; the surest one reads a file."""

from chatgot.data.preparation.reader import Reader
from chatgot.data.preparation.readers.docx import DOCX
from chatgot.data.preparation.readers.epub import EPUB
from chatgot.data.preparation.readers.json_files import JSON_FILES
from chatgot.data.preparation.readers.json_lines import JSON_LINES
from chatgot.data.preparation.readers.pdf import PDF
from chatgot.data.preparation.readers.refused import REFUSED
from chatgot.data.preparation.readers.tables import TABLES
from chatgot.data.preparation.readers.web_page import WEB_PAGE

READERS: tuple[Reader, ...] = (
    TABLES,
    JSON_LINES,
    JSON_FILES,
    WEB_PAGE,
    EPUB,
    DOCX,
    PDF,
    REFUSED,
)
