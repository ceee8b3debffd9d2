"""The guess of an old encoding, measured: languages, code pages, lengths, ASCII, torn characters.

`pytest -s -m slow tests/data/test_encoding_guess.py` prints the shares of docs/broken-logs.md.
"""

import random
import time
import unicodedata
from collections.abc import Iterator
from itertools import islice

import pytest
from log_lines import DOUBLE_BYTE, LINES, WESTERN_BITS, WESTERN_FRAMES

from chatgot.data.code_pages import CODE_PAGES
from chatgot.data.count_letters import alphabet_rows, character_rows
from chatgot.data.encoding_guess import guess_encoding, is_rather_utf8

LEVELS = (b"INFO", b"WARN", b"ERROR", b"DEBUG")
ENGLISH = b"connection worker retry cache index client request timeout batch session table".split()
ASCII_SHARES = ("none", "time stamps", "English")
MARKS_OF_CP1258 = "\u0302\u0306\u031b"
# Characters of which Python's Shift-JIS tables have two versions
SAME_SIGNS = str.maketrans("〜−‖", "～－∥")


def encoded(line: str, encoding: str) -> bytes:
    if encoding == "cp1258":
        line = "".join(map(with_marks, line))
    return line.encode(encoding, "replace")


def with_marks(letter: str) -> str:
    """Return a Vietnamese letter as cp1258 has it: tones are characters of their own."""
    if letter.encode("cp1258", "replace") != b"?":
        return letter
    base, *marks = unicodedata.normalize("NFD", letter)
    own = "".join(mark for mark in marks if mark in MARKS_OF_CP1258)
    tone = "".join(mark for mark in marks if mark not in MARKS_OF_CP1258)
    return unicodedata.normalize("NFC", base + own) + tone


def logged(line: bytes, share: str, chance: random.Random) -> bytes:
    """Return a line with as much ASCII around it as logs have."""
    if share == "none":
        return line + b"\n"
    stamp = b"2024-%02d-%02d %02d:%02d:%02d %s " % (
        chance.randint(1, 12),
        chance.randint(1, 28),
        chance.randint(0, 23),
        chance.randint(0, 59),
        chance.randint(0, 59),
        chance.choice(LEVELS),
    )
    if share == "time stamps":
        return b"%s[worker-%d] %s\r\n" % (stamp, chance.randint(1, 9), line)
    before = b" ".join(chance.choices(ENGLISH, k=12))
    after = b" ".join(chance.choices(ENGLISH, k=8))
    return b"%s%s: %s (%s)\n" % (stamp, before, line, after)


def torn(lines: list[bytes], chance: random.Random) -> list[bytes]:
    """Return lines one of which lacks a byte of a character, or one more that is noise."""
    if len(lines) > 1 and chance.random() < 0.3:
        return [*lines[:-1], b"\xff\xff\xff\n", lines[-1]]
    number = chance.randrange(len(lines))
    line = lines[number]
    places = [place for place, byte in enumerate(line) if byte > 0x7F]
    place = chance.choice([places[0], places[-1], chance.choice(places)])
    return [*lines[:number], line[:place] + line[place + 1 :], *lines[number + 1 :]]


def samples(
    length: int, repeats: int, shares: tuple[str, ...] = ASCII_SHARES
) -> Iterator[tuple[str, str, bytes]]:
    """Yield language, encoding and sample: the matrix for one length in lines."""
    for language, (encodings, lines) in LINES.items():
        for encoding in encodings:
            known = [line for line in (encoded(x, encoding) for x in lines) if not line.isascii()]
            for share in shares:
                for tear in (False, True) if encoding in DOUBLE_BYTE else (False,):
                    for repeat in range(repeats):
                        chance = random.Random(f"{language}{encoding}{share}{tear}{repeat}")
                        chosen = chance.sample(known, min(length, len(known)))
                        chosen += chance.choices(known, k=length - len(chosen))
                        written = [logged(line, share, chance) for line in chosen]
                        if tear:
                            written = torn(written, chance)
                        yield language, encoding, b"".join(written)


def is_right(sample: bytes, guess: str | None, encoding: str) -> bool:
    """Return whether the lines that are whole have the same text in both encodings."""
    if guess is None:
        return False
    for line in sample.splitlines():
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError:
            continue
        if text.translate(SAME_SIGNS) != line.decode(guess, "replace").translate(SAME_SIGNS):
            # what follows a torn character in the line may be other characters in both
            if encoding in DOUBLE_BYTE and guess.startswith(encoding[:2]):
                continue
            return False
    return True


def measured(length: int, repeats: int, shares: tuple[str, ...] = ASCII_SHARES) -> float:
    """Return the share of samples that are read right."""
    wrong = []
    total = 0
    for language, encoding, sample in samples(length, repeats, shares):
        guess = guess_encoding(sample).encoding
        total += 1
        if not is_right(sample, guess, encoding):
            wrong.append((language, encoding, guess))
    share = 1 - len(wrong) / total
    print(f"{length} lines: {share:.2%} of {total} samples are right; not {wrong[:20]}")
    return share


def western_lines() -> list[bytes]:
    return [
        frame.format(bit).encode("cp1252") + b"\n"
        for bit in WESTERN_BITS
        for frame in WESTERN_FRAMES
    ]


def test_four_lines_are_enough_for_95_of_100_samples():
    assert measured(4, 1, ("time stamps",)) >= 0.95


def test_forty_lines_are_enough_for_99_of_100_samples():
    assert measured(40, 1, ("English",)) >= 0.99


@pytest.mark.slow  # 20 s: thousands of samples
def test_the_whole_matrix_meets_its_aims():
    assert measured(1, 4) >= 0.90
    assert measured(4, 4) >= 0.95
    assert measured(40, 2) >= 0.99
    assert measured(1000, 1, ("time stamps",)) >= 0.99


def test_no_short_western_line_is_harmed():
    lines = western_lines()
    assert len(lines) >= 500
    harmed = [line for line in lines if not is_right(line, guess_encoding(line).encoding, "cp1252")]
    assert harmed == []


@pytest.mark.parametrize("encoding", CODE_PAGES)
def test_each_code_page_is_a_codec_of_python(encoding):
    assert len(b"a".decode(encoding)) == 1


def test_a_word_that_two_code_pages_read_alike_well_is_not_guessed():
    # № 5 in cp1251, ¹ 5 in cp1252, š 5 in cp1250
    assert guess_encoding(b"\xb9 5\n").encoding is None


def test_noise_is_not_guessed():
    for seed in range(5):
        assert guess_encoding(random.Random(seed).randbytes(5000)).encoding is None


def test_lines_without_a_byte_above_ascii_are_not_guessed():
    for sample in (b"", b"\n", b"plain words\n"):
        assert guess_encoding(sample).encoding is None


def test_colours_are_no_part_of_words():
    line = "\x1b[31mŁadowanie\x1b[0m \x1b[1mBłędów\x1b[0m: pięć\n".encode("cp1250")
    assert guess_encoding(line).encoding == "cp1250"


def test_a_rare_letter_far_into_a_sample_is_seen():
    """cp437 has no õ: a sample of cp850 is not cp437 for all its other letters."""
    lines = ["für Größe schließen\n"] * 50 + ["geöffnet von João Simões, São Paulo\n"]
    lines += ["für Größe schließen\n"] * 50
    assert guess_encoding("".join(lines).encode("cp850")).encoding == "cp850"


def test_the_guess_is_the_same_each_time():
    for _, _, sample in islice(samples(4, 1, ("English",)), 20):
        assert guess_encoding(sample) == guess_encoding(sample)


def test_a_sure_guess_has_more_confidence_than_an_unsure_one():
    sure = guess_encoding("Błąd połączenia, użytkownik wylogowany\n".encode("cp1250"))
    unsure = guess_encoding(b"\xb9 5\n")
    assert sure.confidence > 0.99
    assert unsure.confidence < 0.9


@pytest.mark.parametrize("language", ["german", "polish", "russian", "simplified chinese"])
def test_a_mebibyte_is_judged_in_a_fraction_of_a_second(language):
    encodings, lines = LINES[language]
    chance = random.Random(0)
    known = [line.encode(encodings[0]) for line in lines]
    written = [logged(chance.choice(known), "time stamps", chance) for _ in range(20_000)]
    sample = b"".join(written)[: 1 << 20]
    guess_encoding(sample)
    start = time.process_time()
    guess_encoding(sample)
    assert time.process_time() - start < 0.2  # measured: 0.01 s


def test_letters_are_counted_with_their_neighbours():
    rows = list(alphabet_rows("pl", ["łąka łąka łąka, ŁĄKA"]))
    assert rows == ["pl letters 1 ął", "pl left 1 _łłą", "pl right 1 ąk"]


def test_characters_are_counted_alone():
    assert list(character_rows("ja", ["時間 時間"])) == ["ja characters 1 時間"]


NAMES = (
    "José García|Zoë Müller|Søren Ærø|Håkon Øystein|João Conceição|Núria|Gràcia|Étienne Lefèvre|"
    "Þór Sigurðsson|Äänekoski|Jürgen Groß|Niccolò|Îlot|Børge|Besançon|Ñuñoa|Ångström|"
    "Curaçao|Citroën|Öberg|Malmö|Nîmes|Óbidos|Bogotá|Réunion"
)


def test_a_list_of_names_of_many_languages_is_no_noise():
    sample = NAMES.replace("|", "\n").encode("cp1252")
    assert is_right(sample, guess_encoding(sample).encoding, "cp1252")


@pytest.mark.parametrize("encoding", ["cp1254", "cp857", "iso8859-3"])
def test_a_capital_i_with_a_dot_is_turkish(encoding):
    lines = (
        "İŞLEM İPTAL EDİLDİ\nUYARI: ŞİFRENİZİN SÜRESİ DOLDU\nİleti gönderilemedi\nbağlantı yok\n"
    )
    assert is_right(
        lines.encode(encoding), guess_encoding(lines.encode(encoding)).encoding, encoding
    )


@pytest.mark.parametrize("encoding", ["cp1257", "iso8859-13"])
def test_few_letters_tell_estonian_of_the_baltic_from_cp1252(encoding):
    lines = (
        "Pühapäeval läksime metsa, põõsaid kattis lumi\nŽanri šokeeriv lõpp\nVaru on lõpetatud\n"
    )
    assert is_right(
        lines.encode(encoding), guess_encoding(lines.encode(encoding)).encoding, encoding
    )


def test_a_blank_that_may_be_a_letter_of_a_dos_console_is_not_guessed():
    assert guess_encoding("in\xa0the house\n".encode("cp1252")).encoding is None
    words = "in\xa0the house\nfoo\xa0bar\nto\xa0be\nor\xa0not\n".encode("cp1252")
    assert guess_encoding(words).encoding == "cp1252"
    assert guess_encoding("5\xa0, see\xa0: here\n".encode("cp1252")).encoding == "cp1252"


@pytest.mark.parametrize("text", ["Le cœur a ses raisons, déjà là, été", "Réglé : 5 € à payer"])
def test_one_letter_of_iso8859_15_is_enough(text):
    data = text.encode("iso8859-15")
    assert is_right(data, guess_encoding(data).encoding, "iso8859-15")


RARE = {
    "portuguese": "cp860",
    "icelandic": "cp861 mac-iceland",
    "danish": "cp865",
    "latvian": "iso8859-4",
    "polish": "iso8859-16 mac-latin2",
    "czech": "mac-latin2",
    "croatian": "mac-croatian",
    "greek": "mac-greek",
    "turkish": "mac-turkish",
    "korean": "johab",
}


@pytest.mark.parametrize("language", RARE)
def test_code_pages_of_few_programs_are_known(language):
    for encoding in RARE[language].split():
        data = "\n".join(LINES[language][1]).encode(encoding)
        assert is_right(data, guess_encoding(data).encoding, encoding)


def test_romanian_with_commas_below_is_romanian():
    data = "Fișierul nu există, încercați din nou\nȘtefan, țară și oraș\n".encode("mac-romanian")
    assert guess_encoding(data).encoding == "mac-romanian"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("ç", "cp850"),
        ("patiënt", "cp437"),
        ("größer", "cp1252"),
        ("błąd", "cp1250"),
        ("→", "cp866"),
    ],
)
def test_utf8_in_an_old_encoding_is_seen_line_by_line(text, encoding):
    assert is_rather_utf8(text.encode(), encoding)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("её", "koi8-r"), ("так", "cp866"), ("ЩЕ ТЕ ЧЕ", "iso8859-5"), ("─┐", "cp437")],
)
def test_words_that_are_utf8_by_chance_are_left_to_their_encoding(text, encoding):
    data = text.encode(encoding)
    data.decode()
    assert not is_rather_utf8(data, encoding)


def test_letters_without_any_word_are_no_evidence_for_a_code_page():
    for lone in (b"value \x81 read\n", b"a \xe7 b \xe9 c\n\xfc!\n", b"\x8e\n"):
        assert guess_encoding(lone).encoding in (None, "cp1252")
    assert guess_encoding(b"value \x81 read\n").encoding is None
    assert guess_encoding(b"21.5 \xb0C, 35 \xb5s, \xa7 4\n").encoding == "cp1252"
