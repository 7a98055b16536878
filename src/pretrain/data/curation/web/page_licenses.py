"""What a page says about its license, author and use, in its markup; nothing is inferred from its prose.

Kinds of evidence, from strongest to weakest, as in the C5 corpus: a meta element, JSON-LD of the page itself,
link[rel=license], a[rel=license], and a plain link to a Creative Commons license, which is often that of a picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pretrain.data.curation.licenses import UNKNOWN, spdx_name

if TYPE_CHECKING:
    from resiliparse.parse.html import HTMLTree

META, JSON_LD, LINK, REL_LICENSE, PLAIN_LINK = "meta", "json-ld", "link", "a-rel", "a"
PAGE_EVIDENCE = (PLAIN_LINK, REL_LICENSE, LINK, JSON_LD, META)  # from weakest to strongest
CONFLICT = "conflict"  # the strongest kind names several licenses: none of them is believed
MAX_CHARACTERS = 300  # of a title, an author or an address
MAX_ELEMENTS = 2000  # links that are looked at
MAX_JSON_BYTES, MAX_JSON_NODES = 1 << 18, 5000
_LICENSE_NAMES = {
    "license", "licence", "dc.rights", "dc.rights.license", "dcterms.license", "dcterms.rights", "dc.license",
    "cc:license", "og:license", "rights",
}  # fmt: skip
_MEDIA = {"ImageObject", "VideoObject", "AudioObject", "MediaObject", "Photograph", "SoftwareApplication", "Product"}
_AUTHORS = ("author", "article:author", "dc.creator", "dcterms.creator", "parsely-author")
_DATES = ("article:published_time", "date", "dc.date", "dcterms.created", "datepublished", "parsely-pub-date")
_RESERVED = ("noai", "noimageai")


@dataclass
class PageFacts:
    """What a page says about itself."""

    title: str | None = None
    author: str | None = None
    date: str | None = None
    address: str | None = None  # canonical
    license: str = UNKNOWN  # SPDX name
    evidence: str = "none"  # one of PAGE_EVIDENCE, "conflict" or "none"
    licenses: list[str] = field(default_factory=list)  # all that the page names, strongest evidence first
    reservations: list[str] = field(default_factory=list)  # against use for machine learning


def page_facts(tree: HTMLTree) -> PageFacts:
    """Return what a page says about itself in its markup."""
    facts = PageFacts()
    if tree.title:
        facts.title = _short(tree.title)
    found: dict[str, list[str]] = {kind: [] for kind in reversed(PAGE_EVIDENCE)}
    root = tree.document
    if root is None:
        return facts
    for name, content in _metas(root):
        _read_meta(name, content, facts, found[META])
    _read_links(root, facts, found)
    for script in root.query_selector_all('script[type="application/ld+json"]')[:20]:
        found[JSON_LD] += json_ld_licenses(script.text)
    _decide(found, facts)
    return facts


def _decide(found: dict[str, list[str]], facts: PageFacts) -> None:
    for kind, written in found.items():
        names = sorted({spdx_name(each) for each in written} - {UNKNOWN})
        facts.licenses += [name for name in names if name not in facts.licenses]
        if names and facts.evidence == "none":
            facts.evidence = kind if len(names) == 1 else CONFLICT
            facts.license = names[0] if len(names) == 1 else UNKNOWN


def _metas(root: Any) -> Iterator[tuple[str, str]]:
    for meta in root.query_selector_all("meta[content]")[:MAX_ELEMENTS]:
        name = meta.getattr("name") or meta.getattr("property") or meta.getattr("itemprop") or ""
        yield name.strip().lower(), meta.getattr("content") or ""


def _read_links(root: Any, facts: PageFacts, found: dict[str, list[str]]) -> None:
    for link in root.query_selector_all("link[rel]")[:MAX_ELEMENTS]:
        rel, href = _words(link.getattr("rel")), link.getattr("href") or ""
        if "license" in rel:
            found[LINK].append(href)
        if "canonical" in rel and href.startswith(("http://", "https://")):
            facts.address = href[:2000]
    for kind, selector in ((REL_LICENSE, "a[rel~=license i]"), (PLAIN_LINK, "a[href*='creativecommons.org/']")):
        found[kind] += [link.getattr("href") or "" for link in root.query_selector_all(selector)[:MAX_ELEMENTS]]


def _read_meta(name: str, content: str, facts: PageFacts, licenses: list[str]) -> None:
    if name in _LICENSE_NAMES:
        licenses.append(content)
    elif name in _AUTHORS:
        facts.author = facts.author or _short(content)
    elif name in _DATES:
        facts.date = facts.date or _short(content)
    elif name in ("robots", "googlebot"):
        facts.reservations += [f"robots: {word}" for word in _RESERVED if word in _words(content)]
    elif name == "tdm-reservation" and content.strip() == "1":
        facts.reservations.append("tdm-reservation")


def header_reservations(headers: dict[str, str]) -> list[str]:
    """Return what the header of a response reserves; it is recorded and never inferred."""
    found = [f"x-robots-tag: {word}" for word in _RESERVED if word in _words(headers.get("x-robots-tag"))]
    return [*found, "tdm-reservation"] if headers.get("tdm-reservation", "").strip() == "1" else found


def json_ld_licenses(text: str) -> list[str]:
    """Return the licenses that JSON-LD gives for the page, not those of its pictures and other media."""
    if len(text) > MAX_JSON_BYTES:
        return []
    try:
        waiting: list[Any] = [json.loads(text)]
    except (ValueError, RecursionError):
        return []
    found: list[str] = []
    for _ in range(MAX_JSON_NODES):
        if not waiting:
            break
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            kinds = node.get("@type")
            if _MEDIA & {kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(kind, str)}:
                continue
            found += _of_license(node.get("license"))
            waiting += [value for name, value in node.items() if name != "license" and isinstance(value, dict | list)]
    return found


def _of_license(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [each for part in value[:20] for each in _of_license(part)]
    if isinstance(value, dict):
        return [each for name in ("@id", "url", "name") if isinstance(each := value.get(name), str)][:1]
    return []


def _words(text: str | None) -> list[str]:
    return (text or "").lower().replace(",", " ").split()


def _short(text: str) -> str | None:
    return " ".join(text.split())[:MAX_CHARACTERS] or None
