"""The paragraphs of HTML as it comes, without what surrounds a text: menus, scripts, footers.

lxml's parser tells of each tag as it reads it, and builds no tree: memory stays small. It resolves
no entity but those of HTML, and fetches nothing.
"""

import re
from collections.abc import Iterator
from typing import Protocol

from chatgot.data.preparation.reader import UnreadableError
from chatgot.data.preparation.readers.paragraphs import Paragraph

LEFT_OUT_WORDS = """
script style nav footer header aside noscript template svg math button select textarea
iframe object canvas audio video rt rp head
"""
LEFT_OUT = frozenset(LEFT_OUT_WORDS.split())
BLOCKS_WORDS = """
address article blockquote body caption center details dialog div dl fieldset figcaption
figure form h1 h2 h3 h4 h5 h6 hr html li main ol p pre section summary table tbody tfoot thead
ul
"""
BLOCKS = frozenset(BLOCKS_WORDS.split())
ROWS_AND_TERMS = frozenset(("table", "tr", "td", "th", "dt", "dd"))
HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
NOTES_WORDS = """
footnote footnotes endnote endnotes rearnote rearnotes noteref note pagebreak doc-footnote
doc-endnotes doc-endnote doc-noteref doc-pagebreak doc-toc navigation banner contentinfo
complementary search toc landmarks page-list
"""
NOTES = frozenset(NOTES_WORDS.split())
BLANKS = "\t\n\r\f\v\xa0"
LONGEST_PARAGRAPH = 1 << 20  # characters, after which one comes in parts
LONGEST_ROW = 1 << 16
MOST_DEPTH = 3_000
SOFT_HYPHEN = "\xad"
LONGEST_TITLE = 200
LONGEST_NAME = 60  # of a cell that may name who says the next one
FED = 1 << 16  # characters at once
# XHTML may close any element so; HTML would leave it open
SELF_CLOSED = re.compile(r"<([A-Za-z][\w:.-]{0,40})((?:\s[^<>]{0,2000})?)/>")
OWN_DTD = re.compile(r"<!DOCTYPE[^>\[]{0,1000}\[[^\]]{0,100000}\]\s{0,99}>", re.IGNORECASE)
VOID_WORDS = "area base br col embed hr img input link meta param source track wbr"
VOID = frozenset(VOID_WORDS.split())


class _Parser(Protocol):
    """What is used of a parser of lxml."""

    def feed(self, data: bytes) -> None: ...
    def close(self) -> object: ...


def paragraphs_of_html(chunks: Iterator[str], text: "HtmlText") -> Iterator[Paragraph]:
    """Yield the paragraphs of HTML that comes in pieces.

    text: what takes in the tags; afterwards it has the title.
    Raises: UnreadableError.
    """
    from lxml.etree import HTMLParser, XMLSyntaxError

    # Deep nesting and long names stay limited, as huge_tree is off
    parser: _Parser = HTMLParser(target=text, encoding="utf-8", huge_tree=False)
    for chunk in chunks:
        for start in range(0, len(chunk), FED):
            fed = chunk[start : start + FED].replace("\0", "")
            parser.feed(fed.encode("utf-8", "replace"))
            yield from text.taken()
    try:
        parser.close()
    except XMLSyntaxError:  # nothing in it
        text.close()
    yield from text.taken()


def as_html(page: str) -> str:
    """Return XHTML with `<title/>` as `<title></title>`, and without a DTD of its own."""

    def opened(match: re.Match[str]) -> str:
        tag = match[1]
        return match[0] if tag.lower() in VOID else f"<{tag}{match[2]}></{tag}>"

    return SELF_CLOSED.sub(opened, OWN_DTD.sub("", page, count=1))


def single_blanks(text: str) -> str:
    """Return a text with one blank for each row of blanks and line ends; patterns are slower."""
    for blank in BLANKS:
        text = text.replace(blank, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    return text


class HtmlText:
    """Takes in the tags of a page one by one, as lxml's parser tells them.

    is_book: a chapter, whose `<header>` has its heading.
    title: of the page; heading: the first one in it.
    """

    def __init__(self, is_book: bool = False) -> None:
        self.title = ""
        self.heading = ""
        self._is_book = is_book
        self._depth = 0
        self._left_out = 0  # depth within something that is left out
        self._in_title = 0
        self._in_pre = 0
        self._parts: list[str] = []
        self._length = 0
        self._is_heading = False
        self._term = ""
        self._definition: list[str] | None = None
        self._row: list[list[str]] | None = None
        self._row_length = 0
        self._done: list[Paragraph] = []

    def taken(self) -> list[Paragraph]:
        """Return the paragraphs that are complete, once."""
        done = self._done
        self._done = []
        return done

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Take in the start of an element. Raises: UnreadableError."""
        self._depth += 1
        if self._depth > MOST_DEPTH:  # for each tag, the parser looks through all that are open
            raise UnreadableError(f"more than {MOST_DEPTH:,} tags are open at once")
        if tag == "title" and not self.title and self._left_out <= 1:
            self._in_title = 1
        if self._left_out or self._is_left_out(tag, attributes):
            self._left_out += 1
            return
        if tag == "br":
            self._add("\n")
        elif tag == "pre":
            self._flush()
            self._in_pre += 1
        elif tag in HEADINGS:
            self._flush()
            self._is_heading = True
        elif tag in ROWS_AND_TERMS:
            self._start_row_or_term(tag)
        elif tag in BLOCKS:
            self._flush()

    def _start_row_or_term(self, tag: str) -> None:
        if tag == "table":
            self._end_row(is_layout=True)
        elif tag == "tr":
            self._end_row()
            self._row = []
            self._row_length = 0
        elif tag == "dt":
            self._end_term()
        elif tag == "dd":
            self._end_definition()
            self._flush_term()
            self._definition = []
        else:
            self._flush()
            if self._row is not None:
                self._row.append([])

    def end(self, tag: str) -> None:
        """Take in the end of an element."""
        self._depth -= 1
        if tag == "title":
            self._in_title = 0
        if self._left_out:
            self._left_out -= 1
            return
        if tag == "tr" or tag == "table":
            self._end_row()
        elif tag == "dt":
            self._flush_term()
        elif tag == "dd":
            self._end_definition()
        elif tag == "dl":
            self._end_term()
        elif tag in BLOCKS or tag in ("td", "th"):
            self._flush()
        if tag == "pre":
            self._in_pre = max(self._in_pre - 1, 0)
        if tag in HEADINGS:
            self._is_heading = False

    def data(self, text: str) -> None:
        """Take in text."""
        if self._in_title:
            if len(self.title) < LONGEST_TITLE:
                self.title = single_blanks(self.title + text)[:LONGEST_TITLE].lstrip()
            return
        if not self._left_out:
            text = text.replace(SOFT_HYPHEN, "")
            self._add(text if self._in_pre else single_blanks(text))

    def close(self) -> None:
        """Take in the end of the page."""
        self._end_row()
        self._end_term()
        self._flush()

    def _is_left_out(self, tag: str, attributes: dict[str, str]) -> bool:
        if tag in LEFT_OUT:
            return not (self._is_book and tag == "header")
        if not attributes:
            return False
        if "hidden" in attributes:
            return True
        kinds = f"{attributes.get('epub:type', '')} {attributes.get('role', '')}"
        return not NOTES.isdisjoint(kinds.casefold().split())

    def _add(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)
        if self._length > LONGEST_PARAGRAPH:
            self._flush()

    def _flush(self) -> None:
        """End the paragraph at hand."""
        text = self._text()
        if not text:
            return
        if self._is_heading and not self.heading:
            self.heading = single_blanks(text)[:LONGEST_TITLE]
        if self._definition is not None:
            self._definition.append(text)
            self._row_length += len(text)
            if self._row_length > LONGEST_PARAGRAPH:
                self._end_definition()
        elif self._row:
            self._row[-1].append(text)
            self._row_length += len(text)
            if self._row_length > LONGEST_ROW:
                self._end_row(is_layout=True)
        else:
            self._done.append(Paragraph(text, is_heading=self._is_heading))

    def _text(self) -> str:
        """Return the text since the last paragraph, and forget it."""
        text = "".join(self._parts)
        self._parts.clear()
        self._length = 0
        if not text or text.isspace():
            return ""
        if self._in_pre:
            return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
        lines = (single_blanks(line).strip() for line in text.split("\n"))
        return "\n".join(line for line in lines if line)

    def _end_row(self, is_layout: bool = False) -> None:
        """End a row of a table: its cells are one paragraph, unless they hold the page itself."""
        if self._row is None:
            self._flush()
            return
        row = self._row
        text = self._text()
        self._row = None
        if text and row:
            row[-1].append(text)
        elif text:
            row.append([text])
        cells = [cell for cell in row if cell]
        is_pair = len(cells) == 2 and len(cells[0]) == 1 and len(cells[0][0]) <= LONGEST_NAME
        if is_pair and not is_layout:
            name = cells[0][0]
            self._done.append(Paragraph("\n".join(cells[1]), name=name, between=" | "))
        elif is_layout or any(len(cell) > 1 for cell in cells):
            self._done.extend(Paragraph(text) for cell in cells for text in cell)
        elif cells:
            self._done.append(Paragraph(" | ".join(cell[0] for cell in cells)))

    def _flush_term(self) -> None:
        text = self._text()
        if text:
            self._term = f"{self._term}\n{text}".strip()[:LONGEST_ROW]

    def _end_term(self) -> None:
        """Let what comes be no part of the definition before."""
        self._end_definition()
        if self._term:
            self._done.append(Paragraph(self._term))
            self._term = ""
        self._flush()

    def _end_definition(self) -> None:
        if self._definition is None:
            return
        last = self._text()
        texts = [*self._definition, last] if last else self._definition
        self._definition = None
        self._row_length = 0
        if texts:
            self._done.append(Paragraph("\n".join(texts), name=self._term))
            self._term = ""
