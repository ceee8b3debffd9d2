"""All readers, in the order in which they are asked; the surest one reads a file."""

from chatgot.data.preparation.reader import Reader
from chatgot.data.preparation.readers.discord import DISCORD_JSON, DISCORD_TEXT
from chatgot.data.preparation.readers.google_chat import GOOGLE_CHAT
from chatgot.data.preparation.readers.meta_messages import META
from chatgot.data.preparation.readers.slack import SLACK, SLACK_LIST
from chatgot.data.preparation.readers.telegram import TELEGRAM_JSON
from chatgot.data.preparation.readers.whatsapp import WHATSAPP

READERS: tuple[Reader, ...] = (
    WHATSAPP,
    TELEGRAM_JSON,
    DISCORD_JSON,
    DISCORD_TEXT,
    SLACK,
    SLACK_LIST,
    META,
    GOOGLE_CHAT,
)
