"""Exported chats of WhatsApp come out line for line, in the languages of all phones."""

from contextlib import suppress
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messenger_chats import CHAT, DOCUMENTS, Reading, Said, source_of, truth

from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.whatsapp import WHATSAPP

ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
PERSIAN = str.maketrans("0123456789", "۰۱۲۳۴۵۶۷۸۹")


def twelve(when: datetime, am: str, pm: str, seconds: str = "") -> str:
    """Return a time with 12 hours: `10:15{pm}`; in front where it ends with <."""
    time = f"{(when.hour - 1) % 12 + 1}:{when:%M}{f':{when:%S}' if seconds else ''}"
    half = (am if when.hour < 12 else pm).replace("_", "\u202f")
    return f"{half[:-1]}{time}" if half.endswith("<") else f"{time}{half}"


# How phones of each language begin a line
ANDROID = {
    "en-US": lambda t: f"{t.month}/{t.day}/{t:%y}, {twelve(t, ' AM', ' PM')} - ",
    "en-US new": lambda t: f"{t.month}/{t.day}/{t:%y}, {twelve(t, '_AM', '_PM')} - ",
    "en-GB": lambda t: f"{t:%d/%m/%Y, %H:%M} - ",
    "en-IN": lambda t: f"{t:%d/%m/%y}, {twelve(t, ' am', ' pm')} - ",
    "de": lambda t: f"{t:%d.%m.%y, %H:%M} - ",
    "de 12 h": lambda t: f"{t:%d.%m.%y}, {twelve(t, ' vorm.', ' nachm.')} - ",
    "es": lambda t: f"{t.day}/{t.month}/{t:%y %H:%M} - ",
    "es 12 h": lambda t: f"{t.day}/{t.month}/{t:%y}, {twelve(t, '_a._m.', '_p._m.')} - ",
    "fr": lambda t: f"{t:%d/%m/%Y à %H:%M} - ",
    "fr-CA": lambda t: f"{t:%Y-%m-%d %H h %M} - ",
    "it": lambda t: f"{t:%d/%m/%y, %H:%M} - ",
    "pt": lambda t: f"{t:%d/%m/%Y %H:%M} - ",
    "nl": lambda t: f"{t:%d-%m-%Y %H:%M} - ",
    "ru": lambda t: f"{t:%d.%m.%Y, %H:%M} - ",
    "tr": lambda t: f"{t.day}.{t:%m.%Y %H:%M} - ",
    "tr 12 h": lambda t: f"{t.day}.{t:%m.%Y} {twelve(t, 'ÖÖ <', 'ÖS <')} - ",
    "pl": lambda t: f"{t.day}.{t:%m.%Y, %H:%M} - ",
    "cs": lambda t: f"{t.day}. {t.month}. {t:%Y %H:%M} - ",
    "fi": lambda t: f"{t.day}.{t.month}.{t:%Y} klo {t.hour}.{t:%M} - ",
    "el": lambda t: f"{t.day}/{t.month}/{t:%y}, {twelve(t, ' π.μ.', ' μ.μ.')} - ",
    "bg": lambda t: f"{t.day}.{t:%m.%y} г., {t.hour}:{t:%M} ч. - ",
    "hu": lambda t: f"{t:%Y. %m. %d. %H:%M} - ",
    "sv": lambda t: f"{t:%Y-%m-%d %H:%M} - ",
    "ja": lambda t: f"{t:%Y/%m/%d %H:%M} - ",
    "ko": lambda t: f"{t:%Y}. {t.month}. {t.day}. {twelve(t, '오전 <', '오후 <')} - ",
    "ko long": lambda t: f"{t:%Y}년 {t.month}월 {t.day}일 {twelve(t, '오전 <', '오후 <')} - ",
    "zh": lambda t: f"{t:%Y}/{t.month}/{t.day} {twelve(t, '上午<', '下午<')} - ",
    "id": lambda t: f"{t:%d/%m/%y} {t:%H.%M} - ",
    "vi": lambda t: f"{t:%H:%M, %d/%m/%Y} - ",
    "hi": lambda t: f"{t.day}/{t.month}/{t:%y}, {twelve(t, ' पूर्वाह्न', ' अपराह्न')} - ",
    "th": lambda t: f"{t.day}/{t.month}/{t.year + 543} {t:%H:%M} - ",
    "th short": lambda t: f"{t.day}/{t.month}/{(t.year + 543) % 100} {t:%H:%M} - ",
    "ar": lambda t: f"{t.day}\u200f/{t.month}\u200f/{t.year}، {twelve(t, ' ص', ' م')} - ".translate(
        ARABIC
    ),
    "fa": lambda t: f"۱۴۰۲/{10}/{t.day - 21:02}،\u200f {t:%H:%M} - ".translate(PERSIAN),
}
IPHONE = {
    "en-US": lambda t: f"[{t.month}/{t.day}/{t:%y}, {twelve(t, '_AM', '_PM', 's')}] ",
    "en-GB": lambda t: f"[{t:%d/%m/%Y, %H:%M:%S}] ",
    "de": lambda t: f"[{t:%d.%m.%y, %H:%M:%S}] ",
    "fr": lambda t: f"[{t:%d/%m/%Y à %H:%M:%S}] ",
    "fr-CA": lambda t: f"[{t:%Y-%m-%d, %H h %M min %S s}] ",
    "es": lambda t: f"[{t.day}/{t.month}/{t:%y}, {twelve(t, ' a. m.', ' p. m.', 's')}] ",
    "nl": lambda t: f"[{t:%d-%m-%Y %H:%M:%S}] ",
    "da": lambda t: f"[{t:%d.%m.%Y %H.%M.%S}] ",
    "ko": lambda t: f"[{t:%Y}. {t.month}. {t.day}. {twelve(t, '오전 <', '오후 <', 's')}] ",
    "zh": lambda t: f"[{t:%Y}/{t.month}/{t.day} {twelve(t, '上午<', '下午<', 's')}] ",
    "ar": lambda t: (
        f"[{t.day}\u200f/{t.month}\u200f/{t.year}، {twelve(t, ' ص', ' م', 's')}] ".translate(ARABIC)
    ),
    "old": lambda t: f"{t:%d.%m.%y, %H:%M:%S}: ",
}
PHONES = [("android", name) for name in ANDROID] + [("iphone", name) for name in IPHONE]


def head_of(system: str, language: str):
    return (ANDROID if system == "android" else IPHONE)[language]


def exported(head, chat=CHAT) -> str:
    return "".join(f"{head(said.when)}{said.name}: {said.text}\n" for said in chat)


def reading(write, text: str, options: ReadingOptions | None = None) -> Reading:
    return Reading(WHATSAPP, write(text.encode()), options)


@pytest.mark.parametrize(("system", "language"), PHONES)
def test_a_chat_of_each_phone_comes_out_line_for_line(write, system, language):
    head = head_of(system, language)
    read = reading(write, exported(head))
    assert read.speeches == truth(to_minutes=system == "android")
    assert read.titles == list(DOCUMENTS)
    assert read.certainty > 0.8
    assert not read.findings.left_out


# What WhatsApp itself writes: (kind, text). Of each of sixteen languages some
NOTICES = [
    ("media", "<Media omitted>"),
    ("media", "<Medien ausgeschlossen>"),
    ("media", "<Multimedia omitido>"),
    ("media", "<Médias omis>"),
    ("media", "<Media omessi>"),
    ("media", "<Mídia oculta>"),
    ("media", "<Media weggelaten>"),
    ("media", "<Без медиафайлов>"),
    ("media", "<Medya dahil edilmedi>"),
    ("media", "<pominięto multimedia>"),
    ("media", "<تم استبعاد الوسائط>"),
    ("media", "<मीडिया को छोड़ दिया गया>"),
    ("media", "<メディアなし>"),
    ("media", "<미디어 파일 제외됨>"),
    ("media", "<省略多媒体文件>"),
    ("media", "<Media tidak disertakan>"),
    ("media", "IMG-20231231-WA0001.jpg (file attached)"),
    ("media", "PTT-20231231-WA0003.opus (Datei angehängt)"),
    ("media", "VID-20231231-WA0001.mp4 (파일 첨부됨)"),
    ("media", "\u200eIMG-20231231-WA0001.jpg (الملف مرفق)"),
    ("media", "\u200e<attached: 00000012-PHOTO-2023-12-31-22-15-03.jpg>"),
    ("media", "\u200e<Anhang: 00000012-AUDIO-2023-12-31-22-15-03.opus>"),
    ("media", "\u200eimage omitted"),
    ("media", "\u200eBild weggelassen"),
    ("contact cards", "Anna Schmidt.vcf (file attached)"),
    ("deleted messages", "This message was deleted"),
    ("deleted messages", "Diese Nachricht wurde gelöscht."),
    ("deleted messages", "Se eliminó este mensaje."),
    ("deleted messages", "Ce message a été supprimé"),
    ("deleted messages", "Questo messaggio è stato eliminato"),
    ("deleted messages", "Mensagem apagada"),
    ("deleted messages", "Dit bericht is verwijderd"),
    ("deleted messages", "Данное сообщение удалено"),
    ("deleted messages", "Bu mesaj silindi"),
    ("deleted messages", "Ta wiadomość została usunięta"),
    ("deleted messages", "تم حذف هذه الرسالة"),
    ("deleted messages", "यह संदेश हटा दिया गया था"),
    ("deleted messages", "このメッセージは削除されました"),
    ("deleted messages", "삭제된 메시지입니다."),
    ("deleted messages", "此消息已删除"),
    ("deleted messages", "Pesan ini telah dihapus"),
    ("polls", "POLL:\nWhere?\nOPTION: Here (2 votes)\nOPTION: There (0 votes)\n"),
    ("polls", "UMFRAGE:\nWo?\nOPTION: Hier (1 Stimme)"),
    ("calls", "Missed voice call"),
    ("calls", "Verpasster Videoanruf"),
    ("view once messages", "<View once voice message omitted>"),
    ("view once messages", "null"),
    ("locations", "location: https://maps.google.com/?q=52.1,13.2"),
    ("locations", "Standort: https://maps.google.com/?q=52.1,13.2"),
]


@pytest.mark.parametrize("system", ["android", "iphone"])
def test_notices_are_left_out_and_counted_by_kind(write, system):
    head = head_of(system, "de")
    chat = [*CHAT, *(Said("Anna", text, CHAT[-1].when) for _, text in NOTICES)]
    read = reading(write, exported(head, chat))
    assert read.lines == [(said.name, said.text) for said in CHAT]
    kinds = [kind for kind, _ in NOTICES]
    assert read.findings.left_out == {kind: kinds.count(kind) for kind in kinds}


def test_lines_without_a_name_are_system_messages(write):
    head = ANDROID["en-US"](CHAT[0].when)
    system = [
        "Messages and calls are end-to-end encrypted. Tap to learn more.",
        "Anna created group “Trip: Rome”",
        "+49 170 1234567 joined using this group's invite link",
        'Anna changed the subject from "A: b" to "C: d"',
        "Anna's phone number changed. Tap to message",
    ]
    read = reading(
        write, "".join(f"{head}{line}\n" for line in system) + exported(ANDROID["en-US"])
    )
    assert read.speeches == truth(to_minutes=True)
    assert read.findings.left_out == {"system messages": len(system)}


def test_notices_of_an_iphone_are_known_by_their_mark_in_any_language(write):
    when = IPHONE["de"](CHAT[0].when)
    text = (
        f"\u200e{when}Viaggio: \u200eMessaggi protetti da crittografia.\n"
        f"{when}\u200eÞú bjóst til hóp: Ísland\n"
        + exported(IPHONE["de"])
        + f"\u200e{when}Anna: \u200eMyndbandi sleppt\n"
    )
    read = reading(write, text)
    assert read.speeches == truth()
    assert read.findings.left_out == {"notices of WhatsApp": 2, "system messages": 1}


def test_what_was_written_to_a_file_is_kept_and_edit_tags_go(write):
    head = ANDROID["en-GB"](CHAT[0].when)
    text = (
        f"{head}Anna: IMG-20231230-WA0001.jpg (file attached)\nLook at this\n"
        f"{head}Ben: Nice one <This message was edited>\n"
        f"{head}Ben: Schön <Diese Nachricht wurde bearbeitet.>\n"
        f"{head}Ben: I said <nothing of this kind>\n"
    )
    read = reading(write, text)
    assert read.lines == [
        ("Anna", "Look at this"),
        ("Ben", "Nice one"),
        ("Ben", "Schön"),
        ("Ben", "I said <nothing of this kind>"),
    ]
    assert read.findings.left_out == {"media": 1}


def test_names_may_have_colons_tildes_and_phone_numbers(write):
    head = IPHONE["en-GB"](CHAT[0].when)
    lines = ["Mum: Home: hi", "Mum: Home: are you: there", "Mum: Home: no?"]
    lines += ["~\u202fJo: yes", "\u202a+49 170 1234567\u202c: who?", "@you: \u2068@Jo\u2069 come"]
    read = reading(write, "".join(f"{head}{line}\n" for line in lines))
    assert read.lines == [
        ("Mum Home", "hi"),
        ("Mum Home", "are you: there"),
        ("Mum Home", "no?"),
        ("Jo", "yes"),
        ("+49 170 1234567", "who?"),
        ("@you", "@Jo come"),
    ]


def test_a_date_line_within_a_message_begins_none_unless_it_fits_wholly(write):
    head = ANDROID["de"](CHAT[0].when)
    inner = "12.12.2023, 10:15 - Eve: hello\n[12.12.23, 10:15:00] Eve: hi\n12.12.23 - Eve: hey"
    read = reading(write, f"{head}Anna: she wrote\n{inner}\n{head}Ben: oh\n")
    assert read.lines == [("Anna", f"she wrote\n{inner}"), ("Ben", "oh")]


def test_an_unknown_media_tag_is_learned_from_its_repetition(write):
    head = ANDROID["de"](CHAT[0].when)
    tags = "".join(f"{head}{name}: <Fuaimean air am fàgail>\n" for name in ("A", "B", "A"))
    read = reading(write, tags + exported(ANDROID["de"]))
    assert read.findings.left_out == {"media": 3}
    assert any("Fuaimean" in remark for remark in read.findings.remarks)


# Orders of day, month and year


def dated(dates: str, time: str = "10:15") -> str:
    return "".join(f"{date}, {time} - Anna: at {date}\n" for date in dates.split())


@pytest.mark.parametrize(
    ("dates", "order", "says"),
    [
        ("31/1/23 1/2/23", "dmy", False),
        ("1/31/23 2/1/23", "mdy", False),
        ("23/1/31 23/2/1", "ymd", False),
        ("1/2/23 1/3/23 1/4/23 1/5/23", "mdy", True),
        ("1/2/23 2/2/23 3/2/23 1/3/23", "dmy", True),
        ("2/1/23 1/12/23", "dmy", True),
        ("3/4/2023", "dmy", True),
        ("2023/4/3 2023/4/4", "ymd", False),
    ],
)
def test_the_order_of_dates_is_found_and_doubts_are_said(write, dates, order, says):
    read = reading(write, dated(dates))
    chosen = reading(write, dated(dates), ReadingOptions(date_order=order))
    assert read.speeches == chosen.speeches
    assert read.speeches[0][2] is not None
    assert any("--date_order" in remark for remark in read.findings.remarks) == says
    assert not chosen.findings.remarks


def test_one_late_date_decides_the_order_of_the_whole_file(write):
    text = dated("3/4/23 " * 5000 + "3/25/23")
    read = reading(write, text)
    assert read.titles[0] == "2023-03-04"
    assert not read.findings.remarks


def test_american_markers_speak_for_the_month_first(write):
    assert reading(write, dated("3/4/23", "10:15 PM")).titles == ["2023-03-04"]


def test_the_given_order_wins_and_what_it_cannot_read_is_said(write):
    read = reading(write, dated("1/31/23 2/1/23"), ReadingOptions(date_order="dmy"))
    assert read.speeches[0][2] is None
    assert "1 dates or times cannot be read in the order dmy" in read.findings.remarks


# Damage


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: text.replace("\n", "\n\n").encode(),
        lambda text: text.rstrip("\n").encode(),
    ],
    ids=["crlf", "bom", "utf-16", "cr", "blank lines", "no end"],
)
def test_odd_encodings_and_line_ends_change_nothing(write, spoil):
    read = Reading(WHATSAPP, write(spoil(exported(ANDROID["de"]))))
    assert read.speeches == truth(to_minutes=True)
    assert read.certainty > 0.8


def test_an_endless_line_is_cut_and_said(write):
    head = ANDROID["de"](CHAT[0].when)
    read = reading(write, f"{head}Anna: {'x' * 2_500_000}\n{head}Ben: hi\n")
    assert [name for name, _ in read.lines] == ["Anna", "Ben"]
    assert any("1,000,000 characters" in remark for remark in read.findings.remarks)


def test_a_chat_that_is_not_text_is_refused(write):
    source = source_of(write(b"\x00\x01\x02\xff" * 500))
    with pytest.raises(UnreadableError):
        list(WHATSAPP.read(source, ReadingOptions(), Findings()))


OTHERS = {
    "prose": "It was a dark night: 12 men came, on 31.12.2023, at 10:15.\n" * 20,
    "transcript": "ANNA:\nHello there\n\nBEN:\nHi: you\n\n" * 20,
    "python log": "2023-12-31 22:15:03,123 - root - INFO: started: now\n" * 20,
    "dash log": "2023-12-31 22:15:03 - INFO: started\n" * 20,
    "bracket log": "[2023-12-31 22:15:03] production.ERROR: it failed\n" * 20,
    "other log": "[2023-12-31 22:15:03] sshd: it failed\n" * 20,
    "web log": '127.0.0.1 - - [31/Dec/2023:22:15:03 +0000] "GET / HTTP/1.1" 200 5\n' * 20,
    "source": "def main():\n    x = {1: 2}\n    return x[1:2] - 3\n" * 20,
    "json": '{"date": "31.12.2023, 10:15", "from": "A: b"}\n' * 20,
    "irc": "[12:34] <anna> hello: you\n" * 20,
    "csv": "31/12/2023,10:15,Anna,hello\n" * 20,
    "diary": "31.12.2023, 10:15 - went out\nnothing: else\n" * 20,
    "empty": "",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_texts_are_not_taken_for_a_chat(write, kind):
    assert WHATSAPP.certainty(source_of(write(OTHERS[kind].encode() or b" "))) < 0.5


HEADS = st.sampled_from([*ANDROID.values(), *IPHONE.values()])
LINE = st.one_of(
    st.text(max_size=60),
    st.builds(
        lambda head, said, text: f"{head(said.when)}{text}",
        HEADS,
        st.sampled_from(CHAT),
        st.text(max_size=30),
    ),
    st.from_regex(
        r"\A\[?\d{1,4}[./-]\d{1,2}[./-]\d{1,4},? \d{1,2}:\d{2}(:\d{2})?( [ap]m)?"
        r"(\] | - )\w*:? ?.*\Z"
    ),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(LINE, max_size=12))
def test_no_file_makes_the_reader_fail_otherwise(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "odd_whatsapp.txt"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass") or b" ")
    source = source_of(path)
    assert 0 <= WHATSAPP.certainty(source) <= 1
    with suppress(UnreadableError):
        for piece in WHATSAPP.read(source, ReadingOptions(), Findings()):
            assert "\n\n" not in getattr(piece, "text", "")
