"""Licenses by their SPDX names, from the many ways in which people write them, and what each set of them allows.

SPDX: https://spdx.org/licenses. Classes of permissive licenses: https://blueoakcouncil.org/list (bronze and better).
"""

from __future__ import annotations

import itertools
import math
import re
from enum import Enum
from functools import cache, lru_cache

from pretrain.errors import ConfigError, nearest

UNKNOWN = "unknown"
COLUMN = "column"
PAGE = "page"


class LicenseSet(Enum):
    """Sets of licenses; each holds those before it."""

    public_domain = "public_domain"
    permissive = "permissive"
    open = "open"
    any = "any"


_PUBLIC_DOMAIN = [
    "CC0-1.0", "CC-PDDC", "CC-PDM-1.0", "PDDL-1.0", "Unlicense", "0BSD", "US-Government-Works",
]  # fmt: skip
_PERMISSIVE = [
    "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "BSD-2-Clause-Patent", "BSL-1.0", "ISC", "Zlib",
    "BlueOak-1.0.0", "Artistic-2.0", "AFL-3.0", "PSF-2.0", "Python-2.0", "UPL-1.0", "NCSA", "PostgreSQL", "MS-PL",
    "ECL-2.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "ODC-By-1.0", "CC-BY-1.0", "CC-BY-2.0", "CC-BY-2.5",
    "CC-BY-3.0", "CC-BY-4.0", "OGL-UK-3.0", "etalab-2.0", "MIT-0", "WTFPL",
]  # fmt: skip
_COPYLEFT = [
    "CC-BY-SA-1.0", "CC-BY-SA-2.0", "CC-BY-SA-2.5", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "ODbL-1.0", "CDLA-Sharing-1.0",
    "GFDL-1.1", "GFDL-1.2", "GFDL-1.3", "GPL-2.0", "GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0", "GPL-3.0-only",
    "GPL-3.0-or-later", "LGPL-2.1", "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0", "LGPL-3.0-only",
    "LGPL-3.0-or-later", "AGPL-3.0", "AGPL-3.0-only", "AGPL-3.0-or-later", "MPL-1.1", "MPL-2.0", "EPL-1.0", "EPL-2.0",
    "EUPL-1.1", "EUPL-1.2", "CDDL-1.0", "OSL-3.0",
]  # fmt: skip
_RESTRICTED = [
    f"CC-BY-{kind}-{version}"
    for kind in ("NC", "ND", "NC-SA", "NC-ND")
    for version in ("1.0", "2.0", "2.5", "3.0", "4.0")
]
_PERMISSIVE += ["LicenseRef-CC-BY", "LicenseRef-BSD", "LicenseRef-Apache"]  # no version is stated
_COPYLEFT += ["LicenseRef-CC-BY-SA", "LicenseRef-GPL", "LicenseRef-GFDL"]
_RESTRICTED += [f"LicenseRef-CC-BY-{kind}" for kind in ("NC", "ND", "NC-SA", "NC-ND")]
_SETS = {
    LicenseSet.public_domain: frozenset(_PUBLIC_DOMAIN),
    LicenseSet.permissive: frozenset(_PUBLIC_DOMAIN + _PERMISSIVE),
    LicenseSet.open: frozenset(_PUBLIC_DOMAIN + _PERMISSIVE + _COPYLEFT),
}
SPDX = [*_PUBLIC_DOMAIN, *_PERMISSIVE, *_COPYLEFT, *_RESTRICTED]
_BY_LOWER = {name.lower(): name for name in SPDX}

# other spellings, after `_key`: without case, "license", "version", punctuation and spaces
_SPELLINGS = {
    "publicdomain": "CC-PDDC", "pd": "CC-PDDC", "publicdomainmark": "CC-PDM-1.0", "publicdomainmark10": "CC-PDM-1.0",
    "cc0": "CC0-1.0", "cc010": "CC0-1.0", "cczero": "CC0-1.0", "creativecommonszero": "CC0-1.0",
    "cc0publicdomain": "CC0-1.0", "cc0universal": "CC0-1.0", "cc010universal": "CC0-1.0", "uspublicdomain": "CC-PDDC",
    "pddl": "PDDL-1.0", "unlicensed": "Unlicense", "apache": "LicenseRef-Apache", "apache2": "Apache-2.0",
    "apache20": "Apache-2.0", "mit": "MIT", "expat": "MIT", "bsd": "LicenseRef-BSD", "newbsd": "BSD-3-Clause",
    "bsd3": "BSD-3-Clause", "bsd2": "BSD-2-Clause", "bsd3clauseneworrevised": "BSD-3-Clause",
    "simplifiedbsd": "BSD-2-Clause", "odcby": "ODC-By-1.0", "opendatacommonsattribution": "ODC-By-1.0",
    "opendatacommonsattributionv10": "ODC-By-1.0", "odbl": "ODbL-1.0", "opendatabase": "ODbL-1.0",
    "opendatacommonsopendatabase": "ODbL-1.0", "gnugeneralpublicv30": "GPL-3.0", "gnugeneralpublic30": "GPL-3.0",
    "gpl3": "GPL-3.0", "gpl30": "GPL-3.0", "gplv3": "GPL-3.0", "gpl2": "GPL-2.0", "gpl20": "GPL-2.0",
    "gplv2": "GPL-2.0", "agpl3": "AGPL-3.0", "agplv3": "AGPL-3.0", "lgpl3": "LGPL-3.0", "lgplv3": "LGPL-3.0",
    "gfdl": "LicenseRef-GFDL", "gnufreedocumentation": "LicenseRef-GFDL", "gpl": "LicenseRef-GPL",
    "gnugpl": "LicenseRef-GPL", "gnugeneralpublic": "LicenseRef-GPL", "gnugplv3": "GPL-3.0", "gnugplv2": "GPL-2.0",
    "underapache20": "Apache-2.0", "gnuafferogeneralpublicv30": "AGPL-3.0", "mozillapublic20": "MPL-2.0",
    "mpl2": "MPL-2.0",
    "cdlasharing10": "CDLA-Sharing-1.0", "cdlapermissive10": "CDLA-Permissive-1.0",
    "cdlapermissive20": "CDLA-Permissive-2.0", "usgovernmentworks": "US-Government-Works",
    "usgovernmentwork": "US-Government-Works", "artistic20": "Artistic-2.0", "academicfree30": "AFL-3.0",
    "boostsoftware10": "BSL-1.0", "eclipsepublic20": "EPL-2.0", "opengovernmentuk30": "OGL-UK-3.0",
    "opengovernment30": "OGL-UK-3.0", "ogl": "OGL-UK-3.0",
}  # fmt: skip
_NOTHING = {
    "",
    UNKNOWN,
    "none",
    "null",
    "nan",
    "other",
    "unspecified",
    "notspecified",
    "notgiven",
    "noneprovided",
    "na",
}
_CC_ADDRESS = re.compile(
    r"creativecommons\.org/(?:licenses/(?P<kind>[a-z-]+)/(?P<version>\d\.\d)|publicdomain/(?P<public>zero|mark)/)",
    re.IGNORECASE,
)
_ADDRESSES = (  # of other licenses, as pages link them
    (r"gnu\.org/(?:licenses|copyleft)/(?:old-licenses/)?(fdl|gpl|lgpl|agpl)(?:-([123]\.\d))?", "{0}-{1}"),
    (r"opensource\.org/licenses?/(mit|isc|zlib|postgresql|bsd-[23]-clause|apache-2\.0|mpl-2\.0)\b", "{0}"),
    (r"apache\.org/licenses/license-(2\.0)", "apache-{0}"),
    (r"opendatacommons\.org/licenses/(by|odbl|pddl)/(?:v?(\d)[.-](\d))?", "{0}"),
    (r"nationalarchives\.gov\.uk/doc/open-government-licen[cs]e/version/(3)", "ogl-uk-3.0"),
)
_NAMES_IN_ADDRESSES = {"fdl": "gfdl", "by": "odc-by-1.0", "odbl": "odbl-1.0", "pddl": "pddl-1.0"}
_CC_WORDS = re.compile(
    r"^cc(?P<kind>(?:by|nc|sa|nd)*)(?P<version>[1-4][05]|[1-4])?(?:international|unported|generic|universal)?$"
)
_LONG_NAMES = (
    ("creative commons", "cc"), ("creative common", "cc"), ("attribution", "by"), ("non-commercial", "nc"),
    ("noncommercial", "nc"), ("non commercial", "nc"), ("share-alike", "sa"), ("sharealike", "sa"),
    ("share alike", "sa"), ("no-derivatives", "nd"), ("noderivatives", "nd"), ("noderivs", "nd"),
    ("no derivatives", "nd"),
)  # fmt: skip

_OPERATOR = re.compile(r"\s(?:AND|OR)\s")
_MAX_CHARACTERS = 300  # of a name or an expression
_MAX_ALTERNATIVES = 64


@lru_cache(maxsize=4096)  # names come from untrusted columns
def spdx_name(written: str) -> str:
    """Return the SPDX name of a license as somebody wrote it, an expression of several, or "unknown".

    Understood are SPDX names and expressions, addresses of Creative Commons, tags of Hugging Face, common long names.
    """
    text = written.strip()[:_MAX_CHARACTERS]
    if _OPERATOR.search(text):
        if len(written.strip()) > _MAX_CHARACTERS:  # the rest may ask for more
            return UNKNOWN
        alternatives = _alternatives(text if text.count("(") == text.count(")") else text.strip("()"))
        return " OR ".join(" AND ".join(names) for names in alternatives) or UNKNOWN
    if address := _CC_ADDRESS.search(text):
        if address["public"]:
            return "CC0-1.0" if address["public"].lower() == "zero" else "CC-PDM-1.0"
        kinds = address["kind"].lower().split("-")
        ordered = "-".join(kind for kind in ("by", "nc", "nd", "sa") if kind in kinds)  # 1.0 had another order
        return _BY_LOWER.get(f"cc-{ordered}-{address['version']}", UNKNOWN) if kinds[:1] == ["by"] else UNKNOWN
    if name := _of_address(text.lower()):
        return name
    if text.lower() in _BY_LOWER:
        return _BY_LOWER[text.lower()]
    key = _key(text)
    if key in _NOTHING:
        return UNKNOWN
    return _SPELLINGS.get(key) or _plain_spelling(key) or _creative_commons(text)


def _alternatives(text: str) -> list[tuple[str, ...]]:
    """Return the alternatives of an expression, for each the names of all licenses that apply together.

    Empty if a part of it is unknown, or if there are more than anybody would write.
    """
    if len(parts := _split(text, "OR")) > 1:
        operands = [_alternatives(part) for part in parts]
        return list(itertools.chain(*operands)) if all(operands) else []
    if len(parts := _split(text, "AND")) > 1:
        operands = [_alternatives(part) for part in parts]
        if math.prod(map(len, operands)) > _MAX_ALTERNATIVES:
            return []
        return [tuple(itertools.chain(*combination)) for combination in itertools.product(*operands)]
    if _OPERATOR.search(text):  # within parentheses
        inner = text.strip()
        return _alternatives(inner[1:-1]) if inner[:1] == "(" and inner[-1:] == ")" else []
    name = spdx_name(text.strip("() "))
    return [] if name == UNKNOWN else [(name,)]


def _split(text: str, operator: str) -> list[str]:
    """Return the parts of an expression between its operators outside parentheses."""
    parts, start = [], 0
    for match in re.finditer(rf"\s+{operator}\s+", text):
        if text.count("(", 0, match.start()) == text.count(")", 0, match.start()):
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def _of_address(text: str) -> str | None:
    """Return the license that an address is of, not one of Creative Commons; without a version a LicenseRef."""
    for pattern, form in _ADDRESSES:
        if found := re.search(pattern, text):
            written = str(found[1])
            first, second = _NAMES_IN_ADDRESSES.get(written, written), (*found.groups(), None)[1]
            name = form.format(first, second)
            return _BY_LOWER.get(name) or _BY_LOWER.get(f"licenseref-{first}") or UNKNOWN
    return None


def _key(text: str) -> str:
    lower = re.sub(r"\([^)]*\)", "", text.lower())
    lower = re.sub(r"\b(?:the|licen[cs]ed?|version|v(?=\d))(?=\b|\d)", "", lower)
    return re.sub(r"[^a-z0-9]+", "", lower)


@cache
def _keys() -> dict[str, str]:
    return {_key(name): name for name in SPDX}


def _plain_spelling(key: str) -> str | None:
    return _keys().get(key)


def _creative_commons(text: str) -> str:
    """Return the name of a Creative Commons license in words; one without a version is a LicenseRef."""
    lower = text.lower().replace("attribution", "cc attribution", int(text.lower().startswith("attribution")))
    for long, short in _LONG_NAMES:
        lower = lower.replace(long, short)
    lower = re.sub(r"\([^)]*\)|\b(?:public|the|licen[cs]ed?|under|is|project)\b", " ", lower)
    found = _CC_WORDS.match(re.sub(r"[^a-z0-9]+", "", lower))
    if found is None or not found["kind"]:
        return UNKNOWN
    marks = [found["kind"][position : position + 2] for position in range(0, len(found["kind"]), 2)]
    parts = ["cc", *(mark for mark in ("by", "nc", "sa", "nd") if mark in marks)]
    version = found["version"]
    name = "-".join([*parts, f"{version[0]}.{version[1:] or '0'}"] if version else ["licenseref", *parts])
    return _BY_LOWER.get(name, UNKNOWN)


def allows(license_set: LicenseSet, spdx: str) -> bool:
    """Return whether a known license is in a set; an expression needs all of its AND, one of its OR."""
    if license_set is LicenseSet.any:
        return True
    known = _SETS[license_set]
    return any(all(name in known for name in group.split(" AND ")) for group in spdx.split(" OR "))


def needs_attribution(spdx: str) -> bool:
    """Return whether texts under a license must name their origin."""
    return spdx != UNKNOWN and not allows(LicenseSet.public_domain, spdx)


def check_stated(key: str, license_name: str, own: str | None = None) -> None:
    """Raise ConfigError for a stated license that is no SPDX name, `unknown`, or `own`: column or page."""
    if license_name in (UNKNOWN, own) or spdx_name(license_name) != UNKNOWN:
        return
    if license_name in (COLUMN, PAGE):
        whose = "files of records" if license_name == COLUMN else "web pages"
        others = f"{own} or {UNKNOWN}" if own else UNKNOWN
        raise ConfigError(f"{key}={license_name} is for sources of {whose}. Write an SPDX name, {others}.")
    each = {COLUMN: " column for each text's own,", PAGE: " page for what each page says,", None: ""}[own]
    raise ConfigError(
        f"{key}={license_name} is no license that is known here. {nearest(license_name, SPDX)} Write an SPDX name such "
        f"as CC-BY-4.0,{each} or unknown."
    )
