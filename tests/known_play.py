"""A play of sixty speeches in nine languages with known truth: who says what, when, where."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

ENGLISH = """
Anna | The letter came at noon. | It smells of salt and oranges.
Old Man 2 | Then it is from my sister. | She writes once in ten years, and always in autumn.
Anna | Shall I read it to you?
Old Man 2 | Read slowly. | My ears are older than I am, and they tire before I do.
Anna | She says that the harbour is frozen.
Jo O'Neill | Frozen? | In September?
Anna | That is what it says: frozen from the lighthouse to the mill.
Jo O'Neill | Let me see that. | Her sevens look like ones, and her ones like nothing at all.
Old Man 2 | No.
Anna | He is right, it is my letter now.
Jo O'Neill | Everything in this house is yours, except the bill.
Old Man 2 | Quiet, both of you, or I shall count to three.
Anna | You never get past two.
Old Man 2 | Two!
"""
GERMAN = """
Frau Groß | Wer hat die Leiter genommen? | Sie stand gestern noch im Hof.
Ägidius | Der Wind. | Er braucht sie für die Wolken.
Frau Groß | Der Wind hat keine Hände, und du hast zwei linke.
Ägidius | Dafür habe ich Zeit.
Frau Groß | Zeit hat jeder, bis die Glocke schlägt.
Ägidius | Hörst du sie?
Frau Groß | Ich höre nur deinen Magen. | Komm, es gibt Suppe.
Ägidius | Schön, aber ohne Löffel, denn die hat auch der Wind.
"""
FRENCH = """
Élodie d'Arc | Où est passé le chat ? | Il dormait sur la carte du monde.
François | Il a traversé l'océan. | Regarde les traces.
Élodie d'Arc | Ce sont des taches de café.
François | Un océan de café, alors, et sans une seule île.
Élodie d'Arc | Tu n'es pas sérieux.
François | Jamais avant midi, et rarement après.
"""
SPANISH = """
María José | ¿Quién llama tan tarde? | ¡Ya es casi de día!
Íñigo | Soy yo, y vengo con hambre.
María José | El pan está en la mesa, junto a tus excusas.
Íñigo | ¡Qué mesa tan pequeña para tantas excusas!
María José | Siéntate. | Mañana hablamos del perro.
Íñigo | ¿De qué perro?
"""
RUSSIAN = """
Вера | Кто открыл окно? | Здесь холодно, как в погребе.
Пётр Ильич | Никто. | Оно открылось само, от скуки.
Вера | Окна не скучают.
Пётр Ильич | Это смотрит вон туда, на пустую улицу, уже сорок лет.
Вера | Тогда закрой его, и пусть отдохнёт.
Пётр Ильич | Закрою, если ты поставишь чайник.
"""
GREEK = """
Ελένη | Πού πήγε το καράβι; | Το περιμένω από το πρωί.
Νίκος | Έφυγε χωρίς να μας ρωτήσει.
Ελένη | Κανείς δεν ρωτάει τη θάλασσα, ούτε τον καιρό.
Νίκος | Εγώ τη ρωτάω κάθε βράδυ.
Ελένη | Και τι σου απαντάει;
Νίκος | Αύριο.
"""
TURKISH = """
İlker | Çay soğudu. | Sen hâlâ pencereden bakıyorsun.
Işık | Yağmuru sayıyorum, on ikiye kadar geldim.
İlker | Yağmur sayılmaz, içilir.
Işık | O zaman bir bardak daha ver, ama şekersiz.
İlker | Şeker zaten bitti.
Işık | Öyleyse her şey yolunda.
"""
JAPANESE = """
花子 | 窓を閉めてください。 | 風が強いです。
太郎 | もう閉めました。
花子 | では、あの音は何ですか。
太郎 | 私のお腹です。
"""
ARABIC = """
مريم | أين المفتاح؟ | كان على الطاولة قبل قليل.
يوسف | أكلته القطة، كما أكلت الخبز.
مريم | ليس عندنا قطة.
يوسف | إذن عندنا مشكلة أكبر.
"""
SCENES = {
    "English": ENGLISH,
    "German": GERMAN,
    "French": FRENCH,
    "Spanish": SPANISH,
    "Russian": RUSSIAN,
    "Greek": GREEK,
    "Turkish": TURKISH,
    "Japanese": JAPANESE,
    "Arabic": ARABIC,
}
WITH_CAPITALS = tuple(SCENES)[:7]
BEGIN = datetime(2023, 12, 21, 9, 5, 7, tzinfo=UTC)


@dataclass(frozen=True)
class Said:
    """A speech: who says which lines, in which scene, and when.

    when: a scene each day, a speech every seven minutes.
    """

    scene: str
    name: str
    lines: tuple[str, ...]
    when: datetime

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def speeches(*scenes: str) -> list[Said]:
    """Return the speeches of some scenes; none named: of all."""
    said = []
    for day, scene in enumerate(scenes or SCENES):
        when = BEGIN + timedelta(days=day)
        for row in SCENES[scene].strip().split("\n"):
            name, *lines = row.split(" | ")
            said.append(Said(scene, name, tuple(lines), when))
            when += timedelta(minutes=7, seconds=11)
    return said


def prepared(said: list[Said], capitals: bool = False, joined: bool = False, documents=True) -> str:
    """Return the text that comes of speeches.

    capitals: names are in capitals. joined: each speech is one line. documents: each scene is one.
    """
    parts = []
    scene = said[0].scene
    for speech in said:
        if documents and speech.scene != scene:
            parts.append("<|endoftext|>\n")
            scene = speech.scene
        name = speech.name.upper() if capitals else speech.name
        parts.append(f"{name}:\n{' '.join(speech.lines) if joined else speech.text}\n\n")
    return "".join(parts)
