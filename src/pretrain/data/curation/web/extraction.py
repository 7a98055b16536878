"""The text of a web page. Pages are hostile: all of this runs in a process that may die (page_process.py)."""

from __future__ import annotations

import codecs
import re
from dataclasses import asdict, dataclass
from typing import Any

from pretrain.data.curation.web.config import Extractor, Precision
from pretrain.data.curation.web.page_licenses import page_facts
from pretrain.data.curation.web.responses import UnusableError

MAX_REPLACED = 0.01  # of the characters of a page
MAX_ATTRIBUTES = 2000
MEMORY = "page takes more than html.max_memory"
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_RAW = {"script", "style", "textarea", "title", "xmp", "noembed", "noframes"}  # their content is no markup
# Elements without content, and elements that end without a tag, so that an open one is not nested deeper.
_FLAT = {
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
    "html", "head", "body", "p", "li", "dt", "dd", "rt", "rp", "option", "optgroup", "colgroup", "thead", "tbody",
    "tfoot", "tr", "td", "th",
}  # fmt: skip
_LONG_TAG = re.compile(rf"<[a-zA-Z][^<>]{{{2 * MAX_ATTRIBUTES},}}")
_ELEMENT = re.compile(r"<[a-zA-Z]")
_TOKEN = re.compile(r"<(?:!--|(/?)([a-zA-Z][^\s/>]{0,40}))")


@dataclass(frozen=True)
class Extraction:
    """How pages are read."""

    extractor: Extractor
    precision: Precision
    max_depth: int
    max_elements: int


def read_page(content: bytes, charset: str | None, how: Extraction) -> dict[str, Any]:
    """Return the text of a page and what it says about itself, as plain JSON. Raises UnusableError."""
    from resiliparse.parse.html import HTMLTree

    markup = decode_page(content, charset)
    check_markup(markup, how.max_elements, how.max_depth)
    tree = HTMLTree.parse(markup)
    facts = page_facts(tree)
    text = _by_resiliparse(tree) if how.extractor is Extractor.resiliparse else _by_trafilatura(markup, how.precision)
    if not text.strip():
        raise UnusableError("no text in the page")
    return {"text": text.strip(), **asdict(facts)}


def _by_trafilatura(markup: str, precision: Precision) -> str:
    from trafilatura import extract

    if "html" not in markup[:50].lower():  # it takes a page without this for no HTML
        markup = f"<!DOCTYPE html>\n{markup}"
    found = extract(
        markup, include_comments=False, favor_precision=precision is Precision.high,
        favor_recall=precision is Precision.recall, deduplicate=False, fast=False,
    )  # fmt: skip
    return found or ""


def _by_resiliparse(tree: Any) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return str(extract_plain_text(tree, main_content=True, alt_texts=False, comments=False))


def decode_page(content: bytes, charset: str | None) -> str:
    """Return the markup of a page: by its byte order mark, the header, its meta element, or a guess, in this order.

    Raises UnusableError if more than one character in a hundred cannot be decoded.
    """
    from resiliparse.parse.encoding import detect_encoding

    for mark, name in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if content.startswith(mark):
            return _decoded(content[len(mark) :], name)
    stated = _known(charset)
    if stated is None:
        stated = _known(detect_encoding(content, from_html_meta=True))
    return _decoded(content, stated or "utf-8")


def _known(charset: str | None) -> str | None:
    """Return the encoding that browsers use under a name; None for a name that they do not know."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    if not charset:
        return None
    name = map_encoding_to_html5(charset.strip().strip("\"'")[:40], fallback_utf8=False)
    try:
        return codecs.lookup(name).name if name else None
    except LookupError:
        return None


def _decoded(content: bytes, encoding: str) -> str:
    markup = content.decode(encoding, "replace")
    replaced = markup.count("\ufffd")
    if replaced > MAX_REPLACED * len(markup):
        raise UnusableError("page is not in its encoding")
    return markup


def check_markup(markup: str, max_elements: int, max_depth: int) -> None:
    """Raise UnusableError for a page with too many or too deeply nested elements, in time linear in its length.

    A count on the tags as they stand: parsers may nest them otherwise, but hardly deeper.
    """
    if markup.count("<") > max_elements and sum(1 for _ in _ELEMENT.finditer(markup)) > max_elements:
        raise UnusableError("page has more than html.max_elements")
    for tag in _LONG_TAG.finditer(markup):
        if len(_QUOTED.sub("", tag[0]).split()) > MAX_ATTRIBUTES:
            raise UnusableError(f"page has a tag of more than {MAX_ATTRIBUTES:,} attributes")
    _check_depth(markup, max_depth)


def _check_depth(markup: str, max_depth: int) -> None:
    opened: dict[str, int] = {}
    depth = at = 0
    while found := _TOKEN.search(markup, at):
        at = found.end()
        if found[2] is None:
            at = _behind(markup, "-->", at)
        elif (name := found[2].lower()) in _FLAT:
            continue
        elif name in _RAW:
            at = at if found[1] else _behind(markup, f"</{found[2]}", at)
        elif not found[1]:
            opened[name] = opened.get(name, 0) + 1
            depth += 1
            if depth > max_depth:
                raise UnusableError("page is nested deeper than html.max_depth")
        elif opened.get(name, 0):
            opened[name] -= 1
            depth -= 1


def _behind(markup: str, end: str, at: int) -> int:
    """Return the position after the next `end`; that of the page's end if there is none."""
    position = markup.find(end, at)
    return len(markup) if position < 0 else position + len(end)
