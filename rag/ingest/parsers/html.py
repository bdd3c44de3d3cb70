"""HTML: the text that a reader sees, by block elements; headings, lists, tables and preformatted text are kept apart."""

import re
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser, LexborNode

from rag.ingest.progress import Progress
from rag.ingest.text import DocumentBuilder, decode
from rag.types import ParsedDocument

_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]+)""", re.IGNORECASE)
_CHARSET_WITHIN_BYTES = 4096
_BLANKS = re.compile(r"\s+")
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_DROPPED = frozenset({
    "script", "style", "template", "noscript", "head", "svg", "math", "canvas", "iframe", "object", "select", "datalist", "button",
    "audio", "video",
})  # fmt: skip
_BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "hr", "html",
    "li", "main", "menu", "nav", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
})  # fmt: skip
_CELLS = frozenset(("td", "th"))


def parse(source: Path, _progress: Progress) -> ParsedDocument:
    """What the page shows. Raises `ParseFailed` for what is no text."""
    data = source.read_bytes()
    declared = _CHARSET.search(data[:_CHARSET_WITHIN_BYTES])
    builder = DocumentBuilder()
    title = add_html(builder, decode(data, declared[1].decode("ascii") if declared else ""))
    return builder.build(title)


def add_html(builder: DocumentBuilder, html: str, page: int = 0) -> str:
    """Append the blocks of the page to the builder and return the page's title."""
    tree = LexborHTMLParser(html.replace("\x00", ""))
    title = tree.css_first("title")
    if tree.body is not None:
        _Walk(builder, page).body(tree.body)
    return _BLANKS.sub(" ", title.text()).strip() if title is not None else ""


class _Walk:
    """Collects text in document order and closes a block at every border of a block element. Iterative: pages nest deep."""

    def __init__(self, builder: DocumentBuilder, page: int) -> None:
        self._builder = builder
        self._page = page
        self._buffer: list[str] = []
        self._level = 0
        self._item = False  # the block under way is an item of a list
        self._preformatted = 0
        self._rows: list[str] | None = None  # of the outermost table under way
        self._cells: list[str] = []
        self._tables = 0

    def body(self, body: LexborNode) -> None:
        node: LexborNode | None = body
        depth = 0
        while node is not None:
            child = self._enter(node)
            if child is not None:
                node, depth = child, depth + 1
                continue
            self._leave(node)
            while node is not None and depth and node.next is None:
                node, depth = node.parent, depth - 1
                if node is not None:
                    self._leave(node)
            node = node.next if node is not None and depth else None
        self._flush()

    def _enter(self, node: LexborNode) -> LexborNode | None:
        """Take the node in and return its first child where it has one that counts."""
        if node.is_text_node:
            text = node.text(deep=False)
            self._buffer.append(text if self._preformatted else _BLANKS.sub(" ", text))
            return None
        tag = node.tag
        if tag in _DROPPED or not node.is_element_node:
            return None
        if tag == "br":
            self._buffer.append("\n")
        elif tag == "img":
            self._buffer.append(f" {node.attributes.get('alt') or ''} ")
        elif tag in _BLOCKS:
            self._border(tag)
            self._level = _HEADINGS.get(tag or "", self._level)
            self._preformatted += tag == "pre"
            if tag == "li":
                self._buffer.append("- ")
                self._item = self._rows is None
            elif tag == "table":
                self._tables += 1
                if self._rows is None:
                    self._rows = []
        return node.child

    def _leave(self, node: LexborNode) -> None:
        tag = node.tag
        if not node.is_element_node or tag in _DROPPED:
            return
        if tag in _CELLS and self._rows is not None:
            self._cells.append(_BLANKS.sub(" ", "".join(self._buffer)).strip())
            self._buffer = []
        elif tag in _BLOCKS:
            self._border(tag)
            if tag in _HEADINGS:
                self._level = 0
            self._preformatted -= tag == "pre"
            if tag == "table":
                self._end_table()

    def _border(self, tag: str | None) -> None:
        if self._rows is None:
            self._flush()
        elif tag == "tr" and self._cells:
            self._rows.append(" | ".join(self._cells))
            self._cells = []
        elif tag == "caption":
            self._rows.append("".join(self._buffer))
            self._buffer = []
        else:
            self._buffer.append(" ")

    def _end_table(self) -> None:
        self._tables -= 1
        if self._tables or self._rows is None:
            return
        rows, self._rows = self._rows, None
        self._flush()  # text in the table outside of its cells
        self._builder.add("\n".join(row.strip() for row in rows if row.strip(" |")), page=self._page, kind="table")

    def _flush(self) -> None:
        text = "".join(self._buffer)
        self._buffer = []
        if not self._preformatted:
            text = "\n".join(_BLANKS.sub(" ", line).strip() for line in text.split("\n"))
        if text.strip() not in ("", "-"):
            self._builder.add(text, level=self._level, page=self._page, tight=self._item)
        self._item = False
