"""Which subtitles are advertisements and credits of those who made the subtitles?"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

# One of these is in each advertisement: found fast, then looked at
HINTS = (
    "subtitle", "subbed", "sync", "download", "www.", "http", "opensub", "subscene", "addic7ed",
    "yify", "yts.", "amara.org", "podnapisi", "untertitel", "sous-titr", "subtít", "subtitul",
    "sottotitol", "legenda", "napisy", "ondertitel", "undertext", "tekstet", "titulky", "feliratot",
    "субтитр", "переве", "перевод", "字幕", "advertise", "ripped by", "encoded by", "captioned",
    "captions by", "altyazı", "ترجمة", "תרגום", "traduc", "tradotto", "traduzione", "tłumacz",
    "subs by", "translated by", "translation by", "transcript by", "timing by", "timed by",
)  # fmt: skip
SITES = (
    r"open ?subtitles|subscene|addic7ed|podnapisi|yts\.(?:mx|am|ag|lt|re)|yify|amara\.org"
    r"|tvsubtitles|subtitle(?:seeker|cat|hub)|subdivx|subf2m|napiprojekt|titlovi\.|my-subs|subtitlesource"
    r"|moviesubtitles|legendas\.tv|argenteam|italiansubs|seriessub|u-sub\.net"
)
MADE = (
    r"(?:(?:fan ?)?subs?|subbed|subtitl(?:es?|ed|ing)|captions?|captioned|captioning|timing|timed"
    r"|synced|synchroni[sz]ed|sync|synchro|translated|translation|transcript|transcribed|encoded"
    r"|ripped|resync|resynced|corrected|corrections?|adapted|edited|improved|proofread)"
)
MADE_COLON = r"(?:subs|subbed|subtitles|sync|synchro|synced|resync|timing|captions)"
ADS = re.compile(
    rf"(?:{SITES})"
    rf"|^\W{{0,20}}{MADE}(?:[ ,&+/]{{1,3}}(?:and )?{MADE}){{0,4}}\s{{0,3}}by\b"
    rf"|^\W{{0,20}}{MADE_COLON}(?:[ ,&+/]{{1,3}}(?:and )?{MADE}){{0,4}}\s{{0,3}}:"
    r"|\bdownloaded from\b|\badvertise your (?:product|brand)|\bremove all ads\b|\bvip member\b"
    r"|\b(?:best|free) subtitles\b|\brate this subtitle"
    r"|\bsubtitles? (?:from|downloaded|extracted)\b"
    r"|^\W{0,20}(?:untertitel(?:ung)?|sous-titr(?:es|age|é)|subtít?ulos|subtitulado|subtitulos"
    r"|sottotitoli|legendas?|legendado|napisy|ondertitel(?:ing|d)|undertexter|undertekster|tekstet"
    r"|titulky|feliratot|субтитры|altyazı|字幕)\b.{0,40}"
    r"(?::|：|\b(?:von|der|des|im auftrag|par|por|di|by|av|af|door|przez|от"
    r"|подогнал|сделал|создал)\b)"
    r"|^\W{0,20}(?:перев[её]л|перевод|traduc(?:ción|ido|tion|ão)|traduit|traduzione|tradotto"
    r"|traduzido|tłumaczenie|vertaling|vertaald|übersetzung|översättning)[^.!?]{0,40}?"
    r"(?::|：|\b(?:por|par|di|a cura|da|von|av|door)\b)"
    r"|^\W{0,20}字幕.{0,8}(?:：|:|组|組|翻译|翻譯|制作|製作|校对)"
    r"|^\W{0,20}(?:ترجمة|תרגום|תורגם)\b.{0,20}(?::|על ידי)"
    r"|^\W{0,20}(?:visit |go to |from )?(?:https?://|www\.)\S{1,200}\W{0,20}$",
    re.IGNORECASE | re.MULTILINE,
)


def advertisements(texts: Sequence[str]) -> set[int]:
    """Return which of the texts are advertisements, by their places."""
    joined = "\n".join(texts).lower()
    ends: list[int] = []
    suspects: set[int] = set()
    for hint in HINTS:
        at = joined.find(hint)
        while at >= 0:
            ends = ends or list(accumulate(len(text.lower()) + 1 for text in texts))
            place = bisect_right(ends, at)
            suspects.add(place)
            at = joined.find(hint, ends[place])
    return {place for place in suspects if ADS.search(texts[place])}
