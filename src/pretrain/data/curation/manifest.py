"""manifest.json of a corpus: what was read, what was removed and why, what is left, and how to check it.

It is written last, so its presence means that the corpus is complete, and holds a hash of itself.
"""

from __future__ import annotations

import json
import platform
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from pretrain import __version__
from pretrain.data.curation.rules import DUPLICATE_RULES, rule_settings
from pretrain.errors import DataError, printable
from pretrain.files.records import check_format, check_seal, sealed, sha256_of
from pretrain.files.untrusted_files import read_json

FORMAT, VERSION = "pretrain corpus", 1
MANIFEST = "manifest.json"
ITEMS = "contaminated_items.parquet"  # the verdict on each item of the evaluation sets
MAX_MANIFEST_BYTES = 1 << 28
MAX_SUMMARY_BYTES = 60_000
DOMAINS = 100  # of the manifest


def libraries() -> dict[str, str]:
    """Return the versions of all that may change a value or a byte of a corpus."""
    import numpy as np
    import xxhash

    return {
        "pretrain": __version__, "python": platform.python_version(), "unicode": unicodedata.unidata_version,
        "numpy": np.__version__, "pyarrow": pa.__version__, "xxhash": xxhash.VERSION,
    }  # fmt: skip


def add_all(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums of numbers of equal names, also of mappings within mappings; names sorted."""
    total: dict[str, Any] = {}
    for each in counts:
        for name, value in each.items():
            if isinstance(value, Mapping):
                total[name] = add_all([total.get(name, {}), value])
            elif isinstance(value, int):
                total[name] = total.get(name, 0) + value
    return dict(sorted(total.items()))


def by_source(counts: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the sums of tasks' counts for each source."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for each in counts:
        found.setdefault(each["source"], []).append({name: value for name, value in each.items() if name != "source"})
    return {name: add_all(each) for name, each in sorted(found.items())}


def check_identity(sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise DataError unless each source's documents read are those unusable, removed and kept."""
    for name, source in sources.items():
        documents = source["documents"]
        removed = sum(rule["first"] for rule in documents["removed"].values())
        rest = documents["unusable"].values()
        duplicates = {about: documents.get(rule, 0) for rule, about in DUPLICATE_RULES.items()}
        if documents["read"] != sum(rest) + removed + sum(duplicates.values()) + documents["kept"]:
            raise DataError(
                f"the counts of source {name} do not add up: {documents['read']:,} documents read, {sum(rest):,} "
                f"unusable, {removed:,} removed by rules, "
                + "".join(f"{count:,} {about}, " for about, count in duplicates.items())
                + f"{documents['kept']:,} kept. "
                "Delete work/ in the output folder and start again."
            )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a corpus; DataError if there is none, or it was edited or damaged."""
    path = folder / MANIFEST
    try:
        manifest = read_json(path, MAX_MANIFEST_BYTES)
        check_format(manifest, FORMAT, VERSION)
        check_seal(manifest, str(path))
        _check_names(manifest)
    except FileNotFoundError:
        raise DataError(
            f"{printable(str(folder))} is no finished corpus: it has no {MANIFEST}. Name the output of a curation that "
            "has ended, or give its command again: it goes on."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = printable(" ".join(str(error).split()), one_line=True)[:300]
        raise DataError(f"{printable(str(path))} is not the manifest of a corpus: {reason}.") from None
    return manifest


def earlier_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest that a folder has already; None if it has no sound one."""
    with suppress(DataError):
        return read_manifest(folder)
    return None


def report_replaced(before: Mapping[str, Any] | None, now: Mapping[str, Any], report: Callable[[str], object]) -> None:
    """Say which other corpus has made room for this one in its folder, if one has."""
    if before is not None and before["fingerprint"] != now["fingerprint"]:
        count, sources = before["documents"], printable(", ".join(before["sources"]))
        report(f"replaced    a corpus of {count:,} documents from {sources}; runs that read it cannot be resumed")


def _check_names(manifest: dict[str, Any]) -> None:
    for shard in manifest["shards"]:
        name = shard["file"]
        if not (isinstance(name, str) and name.startswith("data/") and name[5:].replace(".parquet", "").isdigit()):
            raise ValueError(f"it lists the shard {str(name)[:80]!r}, which is no name in data/")
        if not all(type(shard[key]) is int for key in ("documents", "characters", "bytes")):
            raise ValueError(f"it has no counts of {name}")


def manifest_bytes(contents: dict[str, Any]) -> bytes:
    """Return the file of a manifest."""
    return json.dumps(sealed({"format": FORMAT, "version": VERSION, **contents}), indent=1).encode()


def summary(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what goes with the tokens, the checkpoints and the model: below 64 kB whatever the corpus is."""
    sources = {
        name: {
            "license": source["license"],
            "documents": source["documents"] | {"removed": _first(source["documents"]["removed"])},
            "characters": source["characters"],
        }
        for name, source in manifest["sources"].items()
    }
    short = {
        "fingerprint": manifest["fingerprint"], "documents": manifest["documents"],
        "characters": manifest["characters"], "sources": sources, "licenses": manifest["licenses"],
        "languages": manifest["languages"], "duplicates": manifest["duplicates"],
        "rules": manifest["settings"]["rules"], "made": manifest["made"],
    }  # fmt: skip
    if "decontamination" in manifest:
        short["decontamination"] = manifest["decontamination"]
    if len(json.dumps(short)) > MAX_SUMMARY_BYTES:  # a thousand sources: their sum says what each would
        total = add_all({key: source[key] for key in ("documents", "characters")} for source in sources.values())
        short["sources"] = {"all": {"license": "see the manifest of the corpus", **total}}
        short["rules"] = {}
    if len(json.dumps(short)) > MAX_SUMMARY_BYTES:
        most = Counter({name: each["documents"] for name, each in manifest["licenses"].items()}).most_common(100)
        short["licenses"] = {name: manifest["licenses"][name] for name, _ in most}
    return short


def _first(removed: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {rule: count["first"] for rule, count in removed.items() if count["first"]}


def check_shard(path: Path, shard: Mapping[str, Any]) -> None:
    """Raise DataError unless a shard's file is the one that was written."""
    try:
        size = path.stat().st_size
        if size == shard["bytes"]:
            digest = sha256_of(path)
    except OSError as error:
        raise DataError(f"{printable(str(path))} cannot be read: {error.strerror}. The manifest lists it.") from error
    if size != shard["bytes"] or digest != shard["sha256"]:
        raise DataError(
            f"{printable(str(path))} is not the file that the manifest lists: its size or its sha256 is another. "
            "Give the command that made the corpus again, or fetch the file again."
        )


def made_with() -> dict[str, Any]:
    """Return the program and libraries that made a corpus."""
    return libraries() | {"byteorder": sys.byteorder}


def setting_name(of_rule: str) -> str:
    """Return the whole name of a setting of a rule."""
    return of_rule if of_rule.startswith("language.") else f"rules.{of_rule}"


def overview(manifest: Mapping[str, Any]) -> list[str]:
    """Return lines that say how many documents were read, removed by each rule, and kept, for each source."""
    lines = []
    for name, source in manifest["sources"].items():
        documents = source["documents"]
        lines.append(f"source      {name}: {documents['read']:,} documents read, license {source['license']}")
        unusable = {f"unusable ({reason})": count for reason, count in documents["unusable"].items()}
        copies = {about: documents[rule] for rule, about in DUPLICATE_RULES.items() if documents.get(rule)}
        for reason, count in {**unusable, **_first(documents["removed"]), **copies}.items():
            settings = rule_settings().get(reason, {}) if count > documents["read"] / 2 else {}  # most of them: why?
            by = f": {', '.join(setting_name(each) for each in settings)}" if settings else ""
            lines.append(f"  removed   {count:>9,}  {count / documents['read']:6.1%}  {reason}{by}")
        share = documents["kept"] / documents["read"] if documents["read"] else 0.0
        lines.append(f"  kept      {documents['kept']:>9,}  {share:6.1%}  {source['characters']:,} characters")
    most = sorted(manifest["licenses"].items(), key=lambda item: (-item[1]["characters"], item[0]))[:10]
    for name, counts in most:
        lines.append(f"license     {name}: {counts['documents']:,} documents, {counts['characters']:,} characters")
    return [*lines, *_personal_data(manifest.get("personal_data", {})), *_contaminated(manifest)]


def _personal_data(found: Mapping[str, Any]) -> list[str]:
    """Return a line that says how many pieces of personal data were replaced, if that was asked for."""
    if not found.get("kinds"):
        return []
    counts = [f"{kind} {found['replaced'][kind]:,}" for kind in found["kinds"] if found["replaced"].get(kind)]
    if not counts:
        return [f"personal data  none found of {', '.join(found['kinds'])}"]
    return [f"personal data  {', '.join(counts)} {'replaced' if found['replacement'] == 'placeholder' else 'cut out'}"]


def _contaminated(manifest: Mapping[str, Any]) -> list[str]:
    """Return lines that say how many items of each evaluation set are in the corpus, if that was asked for."""
    found = manifest.get("decontamination")
    if found is None:
        return []
    lines = []
    for name, each in found["sets"].items():
        short = f", {each['not_checkable']:,} cannot be checked" if each["not_checkable"] else ""
        items = f"{each['contaminated']['gpt_3']:,} of {each['items']:,} items"
        lines.append(f"evaluation  {name}: {items} share a run of {found['words']} words with the corpus{short}")
    share = f"more than {found['share']:.0%} of an item's runs"
    if found["action"] == "drop":
        end = f"that held {share}, dropped; the items are counted in what is left: {found['documents']:,}"
    else:
        end = f"that hold {share}, marked in the column contaminates: {found['documents']:,}"
    return [*lines, f"evaluation  documents {end}"]
