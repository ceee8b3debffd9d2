"""How surprising are bytes in a double-byte encoding of Chinese, Japanese or Korean?"""

from functools import lru_cache

from chatgot.data.alphabets import FOREIGN_CHARACTER, common_characters

# Nats of surprise
TORN = 13.0  # a byte that is no part of a character
RARE_COMMON_PLANE = 9.5  # an ideograph or syllable of the part of the set that is in daily use
RARE_KANA = 7.0
RARE_PUNCTUATION = 6.5
RARE_SIGN = 9.5
UNUSUAL = 13.0
WRONG_SCRIPT = 15.0

# Codec -> what speaks against it before a byte is seen, in nats; its language
DOUBLE_BYTE = {
    "gb18030": (3.5, "zh_CN"),
    "cp950": (4.0, "zh_TW"),
    "big5hkscs": (16.0, "zh_TW"),
    "cp932": (3.5, "ja"),
    "euc_jp": (4.0, "ja"),
    "cp949": (4.0, "ko"),
    "johab": (7.0, "ko"),
}
# Language -> a codec that has the common ideographs in its first rows, and the end of these rows
FIRST_ROWS = {"zh_CN": ("gb2312", 0xD8), "zh_TW": ("big5", 0xC9), "ja": ("euc_jp", 0xD0)}
LONGEST_CHARACTER = 4  # bytes, in GB18030


def token_nats(codec: str, token: bytes) -> float:
    """Return the surprise of a token's characters above ASCII, in nats, in the best cutting.

    A torn byte costs its share only: after it, the cutting into characters may begin anew.
    """
    costs = [0.0] + [float("inf")] * len(token)
    for start, byte in enumerate(token):
        cost = costs[start]
        if byte < 0x80:
            costs[start + 1] = min(costs[start + 1], cost)
            continue
        costs[start + 1] = min(costs[start + 1], cost + _nats(codec, token[start : start + 1]))
        pair = token[start : start + 2]
        nats = _nats(codec, pair)
        if len(pair) == 2 and nats < TORN * 2:
            costs[start + 2] = min(costs[start + 2], cost + nats)
            continue
        for length in range(3, LONGEST_CHARACTER + 1):
            piece = token[start : start + length]
            if len(piece) == length:
                costs[start + length] = min(costs[start + length], cost + _nats(codec, piece))
    return costs[-1]


@lru_cache(maxsize=1 << 16)
def _nats(codec: str, piece: bytes) -> float:
    """Return the surprise of some bytes as one character; of a lone byte that is none: torn."""
    try:
        text = piece.decode(codec)
    except UnicodeDecodeError:
        return TORN * len(piece) if len(piece) == 1 else float("inf")
    if (len(text) > 1 and text[0] < "\x80") or len(text) > 2:
        return float("inf")
    language = DOUBLE_BYTE[codec][1]
    common = common_characters(language)
    return sum(common.get(character, _rare_nats(character, language)) for character in text)


def _rare_nats(character: str, language: str) -> float:
    """Return the surprise of a character that was not counted in the language's messages."""
    code = ord(character)
    if 0x4E00 <= code < 0xA000:
        return _ideograph_nats(character, language)
    if 0x3040 <= code < 0x3100:
        return RARE_KANA if language == "ja" else FOREIGN_CHARACTER
    if 0xAC00 <= code < 0xD7A4:
        return _syllable_nats(character)
    if 0xFF61 <= code < 0xFFA0:
        return RARE_KANA
    if 0x3000 <= code < 0x3020 or 0xFF00 <= code < 0xFF61:
        return RARE_PUNCTUATION
    if 0x2000 <= code < 0x2700:
        return RARE_SIGN
    return FOREIGN_CHARACTER


def _ideograph_nats(character: str, language: str) -> float:
    if language not in FIRST_ROWS:
        return UNUSUAL
    codec, end = FIRST_ROWS[language]
    try:
        lead = character.encode(codec)[0]
    except UnicodeEncodeError:
        return WRONG_SCRIPT
    return RARE_COMMON_PLANE if lead < end else UNUSUAL


def _syllable_nats(character: str) -> float:
    try:
        character.encode("euc_kr")
    except UnicodeEncodeError:
        return UNUSUAL
    return RARE_COMMON_PLANE
