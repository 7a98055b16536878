"""What a corpus was asked to forget: hashes alone, so that later curations leave it out without knowing any text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import xxhash

from pretrain.errors import DataError, printable
from pretrain.files.atomic_files import write_atomically
from pretrain.files.untrusted_files import read_json

FORGOTTEN = "forgotten.json"
FORMAT = "pretrain forgotten documents"
MAX_BYTES = 1 << 30
_KINDS = ("texts", "urls", "domains")


def hashed(value: str) -> str:
    """Return the hash of an address or a domain, 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(value.encode("utf8", "replace"))


def domain_of(url: str | None) -> str:
    """Return the host of an address in lower case; "" where there is none."""
    try:
        return (urlsplit(url or "").hostname or "")[:253]
    except ValueError:
        return ""


@dataclass(frozen=True)
class Tombstones:
    """Hashes of texts, addresses and domains that are left out; a domain stands for those below it too."""

    texts: frozenset[str] = frozenset()  # ids of documents
    urls: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.texts or self.urls or self.domains)

    def __or__(self, other: Tombstones) -> Tombstones:
        return Tombstones(self.texts | other.texts, self.urls | other.urls, self.domains | other.domains)

    def hold(self, identity: str, url: str | None) -> bool:
        """Return whether a document is to be left out."""
        if identity in self.texts:
            return True
        if url is None or not (self.urls or self.domains):
            return False
        parts = domain_of(url).split(".")
        hosts = (".".join(parts[at:]) for at in range(len(parts)))
        return hashed(url) in self.urls or any(hashed(host) in self.domains for host in hosts)

    def content(self) -> bytes:
        """Return the file."""
        record = {"format": FORMAT, "version": 1} | {kind: sorted(getattr(self, kind)) for kind in _KINDS}
        return json.dumps(record, indent=1).encode()

    def write(self, folder: Path) -> None:
        """Write the file of a corpus."""
        write_atomically(folder / FORGOTTEN, self.content())


def read_tombstones(paths: Iterable[Path]) -> Tombstones:
    """Return those of all files that exist, each a file or the folder of a corpus.

    Raises DataError for a file that is something else.
    """
    found = Tombstones()
    for given in paths:
        path = given / FORGOTTEN if given.is_dir() else given
        try:
            record = read_json(path, MAX_BYTES)
            if not isinstance(record, Mapping) or record.get("format") != FORMAT or record.get("version") != 1:
                raise ValueError(f"it has no format={FORMAT!r} of version 1")
            found |= Tombstones(**{kind: _hashes(record, kind) for kind in _KINDS})
        except FileNotFoundError:
            if not given.is_dir():
                raise DataError(f"{printable(str(given))} does not exist. Name a corpus, or its {FORGOTTEN}.") from None
        except (OSError, ValueError) as error:
            reason = printable(" ".join(str(error).split()), one_line=True)[:200]
            raise DataError(f"{printable(str(path))} lists no forgotten documents: {reason}. Restore it.") from None
    return found


def _hashes(record: Mapping[str, Any], kind: str) -> frozenset[str]:
    values = record.get(kind)
    if not isinstance(values, list) or not all(isinstance(each, str) and len(each) == 32 for each in values):
        raise ValueError(f"{kind} is no list of hashes")
    return frozenset(values)
