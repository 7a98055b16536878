"""Why a document of a corpus was removed or kept: its text, its values beside the thresholds, and its twin."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.data.curation.corpus_statistics import opened, order_of, row_groups_of, samples
from pretrain.data.curation.differences import differences, excerpts
from pretrain.data.curation.manifest import read_manifest
from pretrain.data.curation.passages import Excerpt, Span, passages, segments
from pretrain.data.curation.rules import NEAR_RULE, RULE_NAMES, Rule
from pretrain.data.curation.stages import sample_rank
from pretrain.errors import ConfigError, nearest, printable

_BEFORE = 80  # characters shown before the first passage that a rule counts


@dataclass(frozen=True)
class Verdict:
    """What one rule says on a document."""

    rule: Rule
    value: float | None  # None: the rule compares no number, or had none to compare
    removes: bool

    def __str__(self) -> str:
        """Return rule, value and thresholds in words."""
        rule = self.rule
        if self.value is None or rule.high == -1.0:  # the number of a line, of which any removes
            return rule.name
        limits = [f"at least {rule.low:g}"] if rule.low is not None else []
        limits += [f"at most {rule.high:g}"] if rule.high is not None else []
        return f"{rule.name}: {rule.value} {self.value:.6g}, {' and '.join(limits)}"


@dataclass(frozen=True)
class Explained:
    """A document, and what became of it."""

    id: str
    source: str
    origin: str
    license: str
    language: str | None  # as it was stated or detected
    characters: int
    removed_by: str | None  # None: it is kept
    verdicts: list[Verdict] = field(default_factory=list)
    similarity: float | None = None  # to its twin, if that was computed
    text: str | None = None  # None: no file has it any more
    is_whole: bool = True  # False: the text is a part of it
    start: int = 0  # characters before that part
    twin: Explained | None = None  # the document of which it is a copy


@dataclass(frozen=True)
class _Location:
    """Where the decision on a document stands: in which file of decisions/, row group and row."""

    unit: int
    group: int
    row: int
    decision: dict[str, Any]


def explain_id(folder: Path, identity: str, most: int = 20) -> list[Explained]:
    """Return the documents whose id begins with `identity`, at most so many; equal texts have equal ids.

    Raises ConfigError if there is none, DataError if the folder holds no sound corpus.
    """
    manifest = read_manifest(folder)
    wanted = identity.lower()
    found = [
        location
        for location, _ in zip(_locations(folder, lambda row: row["id"].startswith(wanted)), range(most), strict=False)
    ]
    if not found:
        removed = removed_by_rule(folder)
        hint = f", and rule= shows some: try rule={max(removed, key=removed.__getitem__)}" if removed else ""
        raise ConfigError(
            f"id={printable(identity)} is no document of {printable(str(folder))}. Ids are in the column id of "
            f"decisions/ and data/{hint}."
        )
    return [_explained(folder, manifest, location) for location in found]


def explain_rule(folder: Path, rule: str, most: int = 20) -> list[Explained]:
    """Return documents that a rule removed first, those with the smallest hashes, as the report's samples are chosen.

    Raises ConfigError for a rule that removed nothing, DataError if the folder holds no sound corpus.
    """
    manifest = read_manifest(folder)
    chosen = heapq.nsmallest(
        most,
        _locations(folder, lambda row: row["removed_by"] == rule),
        key=lambda location: sample_rank(f"{location.decision['id']} {location.decision['origin']}", rule),
    )
    if not chosen:
        raise ConfigError(
            f"rule={printable(rule)} removed no document of {printable(str(folder))}. "
            + _hint(rule, removed_by_rule(folder))
        )
    return [_explained(folder, manifest, location) for location in chosen]


def _hint(rule: str, removed: Mapping[str, int]) -> str:
    if not removed:
        return "None of its rules did."
    if rule not in RULE_NAMES:
        return nearest(rule, removed)
    return f"These rules did: {', '.join(f'{name} ({count:,})' for name, count in removed.items())}."


def removed_by_rule(folder: Path) -> dict[str, int]:
    """Return how many documents each rule removed first, in the order in which rules are tried; only those that did."""
    found: Counter[str] = Counter()
    for path in sorted((folder / "decisions").glob("*.parquet")):
        for table in row_groups_of(path, ["removed_by"]):
            found.update(reason for reason in table["removed_by"].to_pylist() if reason is not None)
    return {rule: found[rule] for rule in sorted(found, key=order_of)}


def rule_lines(folder: Path) -> list[str]:
    """Return lines with the rules that removed documents of a corpus, and how many.

    Raises DataError if the folder holds no sound corpus.
    """
    read_manifest(folder)
    removed = removed_by_rule(folder)
    if not removed:
        return ["no document was removed; id= shows why one is kept"]
    lines = [f"removed   {count:>9,}  {rule}" for rule, count in removed.items()]
    return [*lines, f"to see some: rule={next(iter(removed))}"]


def _locations(folder: Path, wanted: Callable[[dict[str, Any]], bool]) -> Iterator[_Location]:
    for path in sorted((folder / "decisions").glob("*.parquet")):
        for group, table in enumerate(row_groups_of(path)):
            short = table.select(["id", "removed_by"]).to_pylist()
            for row, values in enumerate(short):
                if wanted(values):
                    (decision,) = table.slice(row, 1).to_pylist()
                    yield _Location(int(path.stem), group, row, decision)


def _explained(folder: Path, manifest: dict[str, Any], location: _Location, *, with_twin: bool = True) -> Explained:
    decision = location.decision
    text, start, is_whole = _text(folder, location)
    twin = None
    twin_id = decision.get("twin") or decision["duplicate_of"]
    if twin_id and with_twin:
        same = (p for p in _locations(folder, lambda row: row["id"] == twin_id and row["removed_by"] is None))
        found = next(same, None)
        twin = None if found is None else _explained(folder, manifest, found, with_twin=False)
    return Explained(
        decision["id"], decision["source"], decision["origin"], decision["license"],
        decision.get("language"), decision["characters"], decision["removed_by"], _verdicts(manifest, decision),
        decision.get("similarity"), text, is_whole, start, twin,
    )  # fmt: skip


def _verdicts(manifest: dict[str, Any], decision: dict[str, Any]) -> list[Verdict]:
    """Return what each applied rule says, in the order in which rules are tried."""
    settings, source = manifest["settings"], decision["source"]
    of_language = settings.get("rules_of_languages", {}).get(source, {})
    rules = of_language.get(decision.get("language"), settings["rules"].get(source, {}))
    found = []
    for number, name in enumerate(RULE_NAMES):
        removes = bool(decision["rules"] >> number & 1)
        if name in rules:
            rule = Rule(name, **rules[name])
            found.append(Verdict(rule, decision.get(rule.value), removes))
        elif removes:
            found.append(Verdict(Rule(name, ""), None, removes))
    return found


def _text(folder: Path, location: _Location) -> tuple[str | None, int, bool]:
    """Return the text as it was read, else as it was written, else as it was sampled.

    With it, the number of characters before it, and whether it is whole.
    """
    decision = location.decision
    for path in sorted((folder / "work").glob(f"read-*/{location.unit:05d}.documents.parquet")):
        if (text := _of_work(path, location)) is not None:
            return text, 0, True
    if decision["removed_by"] is None:
        for table in row_groups_of(folder / "data" / f"{location.unit:05d}.parquet", ["id", "text"]):
            for row, identity in enumerate(table["id"].to_pylist()):
                if identity == decision["id"]:
                    return table["text"][row].as_py(), 0, True
    for sample in samples(folder).get(decision["removed_by"] or "", []):
        if (sample["id"], sample["origin"]) == (decision["id"], decision["origin"]):
            return sample["text"], sample.get("start") or 0, len(sample["text"]) == decision["characters"]
    return None, 0, False


def _of_work(path: Path, location: _Location) -> str | None:
    """Return the text that a finished stage read; None if the file is that of another start."""
    with opened(path) as file:
        if location.group >= file.num_row_groups:
            return None
        table = file.read_row_group(location.group, ["id", "text"])
    if location.row >= len(table) or table["id"][location.row].as_py().hex() != location.decision["id"]:
        return None
    text: str = table["text"][location.row].as_py()
    return text


def lines_of(document: Explained, characters: int, *, all_rules: bool) -> list[str]:
    """Return an explanation as lines for a terminal, with so many characters of each text.

    What the rule counts stands between >> and <<. `all_rules`: also those that do not remove the document.
    """
    about = f"{document.characters:,} characters, license {document.license}"
    about += f", language {document.language}" if document.language else ""
    lines = [f"document    {document.id}  {document.origin}, {about}"]
    lines.append(f"removed by  {document.removed_by}" if document.removed_by else "kept")
    lines += [
        f"  {'removes' if verdict.removes else 'passes ':<9} {verdict}"
        for verdict in document.verdicts
        if verdict.removes or (all_rules and verdict.value is not None)
    ]
    own, of_twin = _differences(document)
    lines += _text_lines("text", document, characters, own)
    if document.twin is not None:
        alike = "" if document.similarity is None else f", similarity {document.similarity:.3f}"
        lines.append(f"copy of     {document.twin.id}  {document.twin.origin}{alike}")
        lines += _text_lines("its text", document.twin, characters, of_twin)
    return lines


def _differences(document: Explained) -> tuple[list[Span], list[Span]]:
    """Return the differences between a near-duplicate and its twin as spans of both texts; none for others."""
    twin = document.twin
    if document.removed_by != NEAR_RULE or document.text is None or twin is None or twin.text is None:
        return [], []
    are_whole = document.is_whole and twin.is_whole
    own, others = differences(document.text, twin.text[document.start :], are_whole=are_whole)
    return own, [(start + document.start, end + document.start) for start, end in others]


def _text_lines(head: str, document: Explained, characters: int, different: Sequence[Span]) -> list[str]:
    if document.text is None:
        return [f"{head:<11} not there any more: work/ of the corpus was deleted, and it is no sample"]
    if not characters:
        return []
    text, rule = document.text, document.removed_by or ""
    shown = excerpts(text, different, characters) if different else [_beginning(text, rule, characters)]
    parts = segments(text, shown, is_cut_before=document.start > 0, is_cut_behind=not document.is_whole)
    return [f"{head:<11} {''.join(f'>>{part}<<' if is_marked else part for part, is_marked in parts)}"]


def _beginning(text: str, rule: str, characters: int) -> Excerpt:
    """Return the beginning of a text, or what is around the first passage that a rule counts, with these marked."""
    spans = passages(text, rule)
    start = max(0, spans[0][0] - _BEFORE) if spans and spans[0][1] > characters else 0
    end = min(start + characters, len(text))
    return Excerpt(start, end, [span for span in spans if span[1] <= end])
