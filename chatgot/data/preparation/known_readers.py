"""All readers, in the order in which they are asked; the surest one reads a file."""

from chatgot.data.preparation.reader import Reader
from chatgot.data.preparation.readers.discord import DISCORD_JSON, DISCORD_TEXT
from chatgot.data.preparation.readers.docx import DOCX
from chatgot.data.preparation.readers.epub import EPUB
from chatgot.data.preparation.readers.fountain import FOUNTAIN
from chatgot.data.preparation.readers.google_chat import GOOGLE_CHAT
from chatgot.data.preparation.readers.irc import IRC
from chatgot.data.preparation.readers.json_files import JSON_FILES
from chatgot.data.preparation.readers.json_lines import JSON_LINES
from chatgot.data.preparation.readers.mail import MAIL
from chatgot.data.preparation.readers.meta_messages import META
from chatgot.data.preparation.readers.pdf import PDF
from chatgot.data.preparation.readers.plain_text import PLAIN_TEXT
from chatgot.data.preparation.readers.refused import REFUSED
from chatgot.data.preparation.readers.screenplay import SCREENPLAY
from chatgot.data.preparation.readers.signal_json import SIGNAL_JSON
from chatgot.data.preparation.readers.signal_text import SIGNAL_TEXT
from chatgot.data.preparation.readers.slack import SLACK, SLACK_LIST
from chatgot.data.preparation.readers.speaker_lines import SPEAKER_LINES
from chatgot.data.preparation.readers.stage_play import STAGE_PLAY
from chatgot.data.preparation.readers.subtitles import (
    ASS,
    MICRODVD_SUBTITLES,
    MPL2_SUBTITLES,
    SRT,
    TMP_SUBTITLES,
    VTT,
)
from chatgot.data.preparation.readers.tables import TABLES
from chatgot.data.preparation.readers.telegram import TELEGRAM_JSON
from chatgot.data.preparation.readers.telegram_html import TELEGRAM_HTML
from chatgot.data.preparation.readers.web_page import WEB_PAGE
from chatgot.data.preparation.readers.whatsapp import WHATSAPP
from chatgot.data.preparation.readers.zoom_chat import ZOOM_CHAT

READERS: tuple[Reader, ...] = (
    WHATSAPP,
    TELEGRAM_JSON,
    TELEGRAM_HTML,
    DISCORD_JSON,
    DISCORD_TEXT,
    SIGNAL_JSON,
    SIGNAL_TEXT,
    SLACK,
    SLACK_LIST,
    META,
    GOOGLE_CHAT,
    ZOOM_CHAT,
    IRC,
    MAIL,
    SPEAKER_LINES,
    VTT,
    SRT,
    ASS,
    MICRODVD_SUBTITLES,
    MPL2_SUBTITLES,
    TMP_SUBTITLES,
    FOUNTAIN,
    SCREENPLAY,
    STAGE_PLAY,
    TABLES,
    JSON_LINES,
    JSON_FILES,
    WEB_PAGE,
    EPUB,
    DOCX,
    PDF,
    REFUSED,
    PLAIN_TEXT,
)
