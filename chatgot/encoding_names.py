"""Names of encodings that a user may give: those of Python's codecs that make text of bytes."""

import codecs

# They turn bytes into text, but no file is written in them
NOT_OF_FILES = {
    "charmap",
    "idna",
    "mbcs",
    "oem",
    "punycode",
    "raw-unicode-escape",
    "undefined",
    "unicode-escape",
    "utf-7",
}


def codec_name(name: str) -> str:
    """Return what Python calls an encoding: `iso8859-2` for `latin2`.

    Raises: ValueError for a name that is no encoding of text files.
    """
    try:
        " ".encode(name)  # LookupError, too, for codecs that are none of text, such as base64
        found = codecs.lookup(name).name
    except (LookupError, ValueError) as error:
        raise _unknown(name) from error
    if found in NOT_OF_FILES:
        raise _unknown(name)
    return found


def _unknown(name: str) -> ValueError:
    return ValueError(
        f"no encoding of text files is called {name!r}; "
        "use a name such as utf-8, cp1250, latin2 or gb18030"
    )
