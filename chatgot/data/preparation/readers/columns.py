"""Which column of a table, or field of a record, has the speaker, which the text."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise

from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.speeches import shown

# Surer names come first; the words of many languages
TEXT_NAMES = """
text dialogue dialog line lines utterance message content body quote sentence speech transcript
caption subtitle subtitles comment review story post reply response lyrics description words said
linetext playerline msg full_text spoken_words raw_text normalized_text
nachricht inhalt satz zeile äußerung zitat texte réplique message_text contenu citation phrase
texto mensaje diálogo frase contenido cita línea mensagem fala conteúdo testo messaggio battuta
contenuto bericht tekst inhoud wiadomość treść kwestia zpráva tekst_wiadomości üzenet szöveg
meddelande replik viesti teksti besked mesaj metin текст сообщение реплика фраза повідомлення
κείμενο μήνυμα טקסט הודעה نص رسالة متن پیام टेक्स्ट संदेश 文本 内容 台词 消息 对话 發言 訊息 台詞
テキスト 発言 セリフ メッセージ 본문 내용 대사 메시지 ข้อความ nội_dung
"""
SPEAKER_NAMES = """
speaker character name author from user who username user_name sender actor role persona player
nick nickname screen_name handle participant person char speaker_name character_name by
raw_character_text
sprecher sprecherin figur rolle autor absender absenderin benutzer nutzer wer person_name
personnage auteur locuteur nom expéditeur qui personaje hablante nombre remitente usuario quién
personagem falante nome remetente usuário quem personaggio parlante mittente utente autore chi
spreker personage naam afzender auteur_naam postać mówca nadawca imię mluvčí postava odesílatel
beszélő szereplő feladó név talare rollfigur avsändare namn puhuja hahmo nimi lähettäjä taler
konuşmacı karakter gönderen isim персонаж говорящий имя автор отправитель кто персонаж_имя
відправник ομιλητής όνομα דובר שם المتحدث الاسم المرسل گوینده नाम वक्ता 角色 说话人 姓名 作者
發言人 名前 話者 キャラクター 발신자 화자 이름 캐릭터 ชื่อ tên
"""
DOCUMENT_NAMES = """
season episode episode_number episode_id episode_title season_number season_episode
scene scene_number scene_id act chapter conversation conversation_id dialogue_id dialog_id
thread thread_id session session_id movie film movie_id play book book_title show series channel
conv_id chat chat_id story_id document document_id doc_id file filename
staffel folge szene akt kapitel gespräch saison épisode scène acte chapitre temporada episodio
escena capítulo episódio cena stagione episodio_numero scena capitolo seizoen aflevering сезон
серия эпизод сцена глава 季 集 場景 シーズン 話 시즌 에피소드
"""
# Their values come again, and they name nobody
NOT_SPEAKERS = """
language lang locale country city region gender sex sentiment label category genre type status
emotion class topic tag tags date time timestamp created updated year month day source url link id
split score rating sprache land kategorie datum zeit title subject format kind level
"""
TEXT_RANKS = {name: rank for rank, name in enumerate(TEXT_NAMES.split())}
SPEAKER_RANKS = {name: rank for rank, name in enumerate(SPEAKER_NAMES.split())}
DOCUMENT_RANKS = {name: rank for rank, name in enumerate(DOCUMENT_NAMES.split())}
WORDS_NOT_SPEAKERS = frozenset(NOT_SPEAKERS.split())
UNSURE = 1000  # rank of a name that only has a known word in it
NOT_WORDS = re.compile(r"[\W_]+")
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
LONGEST_COLUMN_NAME = 60
LONGEST_SPEAKER = 40
LEAST_ROWS = 4  # whose values tell something
LEAST_REPEATS = 2.0  # rows of each speaker, on average, where only the values show the speaker
LEAST_RUN = 1.5  # rows of each document, on average
SHARE_WITH_LETTERS = 0.6
SHARE_CAPITAL = 0.6  # of names begin with a capital
SHOWN_COLUMNS = 20


@dataclass(frozen=True)
class Columns:
    """Where in a row what is; numbers begin at 0.

    speaker: None: no column has it. documents: a change of one of these begins a document.
    """

    names: tuple[str, ...]
    text: int
    speaker: int | None
    documents: tuple[int, ...]


def is_known_name(name: str) -> bool:
    """Return whether a column of this name holds text or who says it, or where it is."""
    return any(_rank(name, ranks) < UNSURE for ranks in (TEXT_RANKS, SPEAKER_RANKS, DOCUMENT_RANKS))


def is_text_name(name: str) -> bool:
    """Return whether a column of this name holds text."""
    return _rank(name, TEXT_RANKS) < UNSURE


def choose_columns(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    options: ReadingOptions,
    findings: Findings,
) -> Columns:
    """Return the columns that the user names, or those that look right by name and content.

    rows: some of the first ones; a row may be shorter than the names.
    What was guessed becomes a remark.
    Raises: UnreadableError where a named column is missing, or no column has text.
    """
    text = _named(names, options.text_column, "text_column")
    speaker = _named(names, options.speaker_column, "speaker_column")
    guessed_speaker = speaker is None
    if text is None:
        text = _guess_text(names, rows, speaker)
        findings.remark(f"the column {_shown(names[text])} is taken as the text")
    if speaker is None:
        speaker = _guess_speaker(names, rows, text)
    documents = _documents(names, rows, {text, speaker}, speaker is not None)
    if guessed_speaker:
        findings.remark(
            f"the column {_shown(names[speaker])} is taken as the speaker"
            if speaker is not None
            else "no column looks like a speaker"
        )
    if documents:
        findings.remark(
            f"a new {' or '.join(_shown(names[at]) for at in documents)} begins a document"
        )
    return Columns(tuple(names), text, speaker, documents)


def _named(names: Sequence[str], wanted: str | None, option: str) -> int | None:
    if wanted is None:
        return None
    for at, name in enumerate(names):
        if name == wanted:
            return at
    for at, name in enumerate(names):
        if name.strip().casefold() == wanted.strip().casefold():
            return at
    near = get_close_matches(wanted, names, n=1)
    meant = f", did you mean {_shown(near[0])}?" if near else ""
    shown = ", ".join(_shown(name) for name in names[:SHOWN_COLUMNS])
    more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
    raise UnreadableError(f"no column {wanted} (--{option}){meant}; its columns are {shown}{more}")


def _shown(name: str) -> str:
    return shown(name, LONGEST_COLUMN_NAME)


def _words(name: str) -> list[str]:
    field = name[:LONGEST_COLUMN_NAME].rsplit(".", 1)[-1]  # `meta.season` is a season
    spaced = CAMEL.sub(" ", field)
    return [word for word in NOT_WORDS.split(spaced.casefold()) if word]


def _rank(name: str, ranks: dict[str, int]) -> int:
    """Return how sure a name is, 0 the surest; UNSURE or more: by one of its words only."""
    words = _words(name)
    joined = "_".join(words)
    if joined in ranks:
        return ranks[joined]
    if not words or words[-1] in ("id", "count", "number", "length", "date", "time", "url"):
        return 2 * UNSURE
    return min((UNSURE + ranks[word] for word in words if word in ranks), default=2 * UNSURE)


def _guess_text(names: Sequence[str], rows: Sequence[Sequence[str]], speaker: int | None) -> int:
    """Return the column with text: by its name, else the one with the longest varied values."""
    others = [at for at in range(len(names)) if at != speaker]
    looks = {at: _Look.of(rows, at) for at in others}
    filled = [at for at in others if looks[at].filled or not rows]
    by_name = sorted((_rank(names[at], TEXT_RANKS), at) for at in filled)
    if by_name and by_name[0][0] < UNSURE:
        return by_name[0][1]
    with_letters = [at for at in filled if looks[at].letters >= SHARE_WITH_LETTERS]
    if not with_letters:
        raise UnreadableError(
            "no column has text; name one with --text_column: "
            + ", ".join(_shown(name) for name in names[:SHOWN_COLUMNS])
        )
    unsure = [at for rank, at in by_name if rank < 2 * UNSURE and at in with_letters]
    if unsure and looks[unsure[0]].length >= LONGEST_SPEAKER / 2:
        return unsure[0]
    return max(with_letters, key=lambda at: looks[at].length * looks[at].variety)


def _guess_speaker(names: Sequence[str], rows: Sequence[Sequence[str]], text: int) -> int | None:
    """Return the column of the speaker: by its name, else one of few short values that look so."""
    others = [at for at in range(len(names)) if at != text]
    looks = {at: _Look.of(rows, at) for at in others}
    ranked = sorted(
        (_rank(names[at], SPEAKER_RANKS), at)
        for at in others
        if looks[at].length <= LONGEST_SPEAKER and (looks[at].filled or not rows)
    )
    for rank, at in ranked:
        if rank < UNSURE or (rank < 2 * UNSURE and looks[at].may_name):
            return at
    if len(rows) < LEAST_ROWS:
        return None
    candidates = [
        at
        for at in others
        if looks[at].may_name
        and looks[at].repeats >= LEAST_REPEATS
        and not WORDS_NOT_SPEAKERS.intersection(_words(names[at]))
        and _rank(names[at], DOCUMENT_RANKS) >= 2 * UNSURE
    ]
    # Who speaks changes from line to line; of equal ones, the column nearest to the text
    return max(candidates, key=lambda at: (looks[at].changes, -abs(at - text)), default=None)


def _documents(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    taken: set[int | None],
    has_speakers: bool,
) -> tuple[int, ...]:
    """Return the columns whose change begins a document; of one row each they would say nothing."""
    known = [
        at
        for at, name in enumerate(names)
        if at not in taken and _rank(name, DOCUMENT_RANKS) < UNSURE
    ]
    chosen = []
    for at in known:
        look = _Look.of(rows, at)
        runs = len(rows) / (1 + look.changes * max(len(rows) - 1, 0)) if rows else 1.0
        if look.filled and (runs >= LEAST_RUN or (has_speakers and len(rows) < LEAST_ROWS)):
            chosen.append(at)
    return tuple(chosen)


@dataclass(frozen=True)
class _Look:
    """What the values of a column look like; shares are of the filled cells."""

    filled: float  # share of all rows
    length: float  # mean
    letters: float
    capitals: float  # of those with letters, begin with a capital or have no capitals at all
    distinct: int
    repeats: float  # rows of each value
    variety: float  # distinct values a row
    changes: float  # share of rows whose value is not that of the row above
    longest: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[str]], at: int) -> "_Look":
        values = [row[at].strip() if at < len(row) else "" for row in rows]
        filled = [value for value in values if value]
        number = max(len(filled), 1)
        counts = Counter(filled)
        with_letters = [value for value in filled if any(c.isalpha() for c in value)]
        # A script without capitals has none to begin with
        capitals = sum(not value[:1].islower() for value in with_letters)
        changes = sum(one != other for one, other in pairwise(values))
        return cls(
            filled=len(filled) / max(len(rows), 1),
            length=sum(map(len, filled)) / number,
            letters=len(with_letters) / number,
            capitals=capitals / max(len(with_letters), 1),
            distinct=len(counts),
            repeats=len(filled) / max(len(counts), 1),
            variety=len(counts) / number,
            changes=changes / max(len(values) - 1, 1),
            longest=max(map(len, filled), default=0),
        )

    @property
    def may_name(self) -> bool:
        """Whether the values may be names of speakers."""
        return (
            self.distinct > 1
            and self.longest <= 2 * LONGEST_SPEAKER
            and self.length <= LONGEST_SPEAKER / 2
            and self.letters >= SHARE_WITH_LETTERS
            and self.capitals >= SHARE_CAPITAL
        )
