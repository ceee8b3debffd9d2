"""Which messages of a WhatsApp export are words of WhatsApp, not of whoever sent them?

An export is in the language of the phone. Notices have a shape in every language (brackets, marks,
endings of files); where they have none, their words in the common languages are listed.
"""

import re
from functools import cache
from pathlib import Path

MARKS = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
LEFT_TO_RIGHT = "\u200e"  # an iPhone puts it before each notice

MEDIA = "media"
DELETED = "deleted messages"
POLLS = "polls"
CALLS = "calls"
ONCE = "view once messages"
PLACES = "locations"
CONTACTS = "contact cards"
NOTICES = "notices of WhatsApp"

# IMG-20231231-WA0001.jpg (file attached)
ATTACHED_FILE = re.compile(r"[^\n()<>/]{1,120}\.(?P<ending>[A-Za-z0-9]{2,5})\s\([^()\n]{3,40}\)")
# <attached: 00000012-PHOTO-2023-12-31-22-15-03.jpg>
ATTACHED_TAG = re.compile(
    r"\s?<[^<>:：\n]{2,40}\s?[:：]\s?[^<>\n]{1,120}\.(?P<ending>[A-Za-z0-9]{2,5})>$"
)
CARD_ENDING = "vcf"
BRACKETED = re.compile(r"<[^<>\n]{3,80}>")
TRAILING_TAG = re.compile(r"\s?(?P<mark>\u200e?)(?P<tag><[^<>\n]{3,80}>)$")
PLACE = re.compile(
    r"[^\n]{0,200}https?://(?:maps\.google\.|www\.google\.[a-z.]+/maps|foursquare)\S*"
)
POLL_OPTION = re.compile(r"\w[\w ]{1,20}\s?[:：] .*[(（]\d+[^()\n]*[)）]")
FIRST_LETTERS = 4  # of a notice
TAG_ENDS = (">", *MARKS)
MARKS_AND_BLANKS = f"{MARKS} \n"
LONGEST_NOTICE = 100  # characters
LONGEST_OPTION = 300  # characters
DOCUMENT = re.compile(r"\u200e[^\n]{3,40}$")

ONCE_WORDS = re.compile(
    "view once|einmalansicht|einmalig|visualización única|vue unique|visualizzazione singola"
    "|visualização única|eenmalig|однократн|tek seferlik|jednorazow|العرض لمرة|एक बार"
    "|一度だけ|1회용|한 번만|一次性|阅后即焚|sekali lihat"
)
NOTHING = "null"  # what Android writes for a message that it cannot export


@cache
def notice_words(section: str) -> frozenset[str]:
    """Return the words of one section of whatsapp_notices.txt."""
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").strip()
    _, _, words = text.partition(f"[{section}]\n")
    own, _, _ = words.partition("\n[")
    return frozenset(own.split("\n"))


@cache
def _kinds() -> dict[str, str]:
    """Return the kinds of notices that are known by all of their words."""
    kinds = {NOTHING: ONCE}
    for section, kind in (
        ("deleted", DELETED),
        ("omitted", MEDIA),
        ("calls", CALLS),
        ("shared places", PLACES),
    ):
        kinds.update(dict.fromkeys(notice_words(section), kind))
    return kinds


@cache
def _first_letters() -> frozenset[str]:
    """Return how known notices begin, and what may be before one."""
    return frozenset(words[:FIRST_LETTERS] for words in _kinds())


def notice_kind(text: str, has_marks: bool) -> str | None:
    """Return the kind of a message that is only a notice; None: somebody wrote it.

    has_marks: an iPhone wrote the export, so that a mark goes before each notice.
    """
    begun = text.lstrip(" ")[:FIRST_LETTERS].casefold()
    if has_no_signs(text) and begun not in _first_letters():
        return None
    bare = text.strip(MARKS_AND_BLANKS)
    words = bare.rstrip(".。").casefold() if len(bare) <= LONGEST_NOTICE else ""
    kind = _kinds().get(words)
    if kind is not None:
        return kind
    if bare.startswith("<"):
        kind = _tag_kind(bare)
    elif "\n" in bare:
        kind = POLLS if _is_poll(bare) else None
    elif "http" in bare:
        kind = PLACES if _is_place(bare) else None
    if kind is None and has_marks and text.startswith(LEFT_TO_RIGHT):
        return ONCE if ONCE_WORDS.search(words) else NOTICES
    return kind


def _tag_kind(bare: str) -> str | None:
    if not BRACKETED.fullmatch(bare):
        return None
    words = bare.strip("<>").strip(MARKS + " .。").casefold()
    if words in notice_words("media tags") or words in notice_words("omitted"):
        return MEDIA
    return ONCE if ONCE_WORDS.search(words) else None


def _is_poll(bare: str) -> bool:
    head, colon, rest = bare.partition("\n")
    if not colon or head.rstrip(" :：").casefold() not in notice_words("poll heads"):
        return False
    lines = (line.strip(MARKS + " ") for line in rest.split("\n"))
    return any(len(line) <= LONGEST_OPTION and POLL_OPTION.fullmatch(line) for line in lines)


def _is_place(bare: str) -> bool:
    head, colon, _ = bare.partition(":")
    if colon and head.strip().casefold() in notice_words("place heads"):
        return True
    return PLACE.fullmatch(bare) is not None


def has_no_signs(text: str) -> bool:
    """Return whether a message is one line without a tag, an address and marks: a quick test."""
    return text.isascii() and "\n" not in text and "<" not in text and "http" not in text


def is_only_words(text: str) -> bool:
    """Return whether a message has none of the signs of a file, a mark or a tag: a quick test."""
    return text.isascii() and "<" not in text and "(" not in text


def without_attachment(text: str, has_marks: bool) -> tuple[str, str | None]:
    """Return what somebody wrote to a file, and the kind of what was attached; None: nothing."""
    if "(" not in text and "<" not in text and "•" not in text:
        return text, None
    first, _, rest = text.partition("\n")
    attached = ATTACHED_FILE.fullmatch(first.strip(MARKS + " "))
    if attached is not None:
        return rest, _kind_of_file(attached["ending"])
    bare = text.rstrip(MARKS + " \n")
    tag = ATTACHED_TAG.search(bare[-200:])
    if tag is not None:
        return bare[: len(bare) - len(tag[0])], _kind_of_file(tag["ending"])
    if has_marks and "•" in text:
        document = DOCUMENT.search(bare[-60:])
        if document is not None and document[0].strip(MARKS + " .").casefold() in notice_words(
            "omitted"
        ):
            return "", MEDIA
    return text, None


def _kind_of_file(ending: str) -> str:
    return CONTACTS if ending.casefold() == CARD_ENDING else MEDIA


def without_edit_tag(text: str) -> str:
    """Return a message without the words that it was edited."""
    if not text.endswith(TAG_ENDS):
        return text
    bare = text.rstrip(MARKS + " ")
    tag = TRAILING_TAG.search(bare[-100:])
    if tag is None:
        return text
    words = tag["tag"].strip("<>").strip(MARKS + " .。").casefold()
    if tag["mark"] or words in notice_words("edited"):
        return bare[: len(bare) - len(tag[0])]
    return text
