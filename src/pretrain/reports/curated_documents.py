"""Documents in the report of a corpus: duplicates with what stands for them, and samples of what was removed.

Texts of a corpus are hostile: all of them pass `escaped`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.data.curation.corpus_statistics import PREVIEW, Cluster, clusters, kept_documents, samples
from pretrain.data.curation.differences import differences, excerpts
from pretrain.data.curation.passages import Excerpt, passages, segments
from pretrain.data.curation.rule_values import RULE_VALUES
from pretrain.data.curation.rules import (
    CONTAMINATION_RULE,
    EXACT_RULE,
    FORGOTTEN_RULE,
    GUARD_RULE,
    LICENSE,
    NEAR_RULE,
    PARAGRAPHS_RULE,
    PERSONAL_DATA_RULE,
)
from pretrain.data.curation.writing import SAMPLE_CHARACTERS
from pretrain.reports.chart import short
from pretrain.reports.page import Cell, card, escaped, grid, marked, number, table

SIZES = 20  # of clusters that are counted
_ABOUT = {
    LICENSE: "The license may not be used",
    EXACT_RULE: "The text is that of another document",
    NEAR_RULE: "The text is almost that of another document",
    GUARD_RULE: "The text is like one in the validation split and one in the training split of the base corpus",
    PARAGRAPHS_RULE: "All paragraphs stand in other documents and were cut",
    CONTAMINATION_RULE: "The text holds items of an evaluation set",
    PERSONAL_DATA_RULE: "The text is nothing but personal data, which is cut out",
    FORGOTTEN_RULE: "The document was forgotten on request",
}
_FACTS = {  # of the manifest
    EXACT_RULE: "exact duplicates removed",
    NEAR_RULE: "near-duplicates removed",
    GUARD_RULE: "removed because they are like texts in both splits of the base corpus",
    PARAGRAPHS_RULE: "removed because all their paragraphs were cut",
    "unverified_kept": "kept, but not compared with each text that may be alike, as there were too many",
    "documents_cut": "documents with paragraphs cut",
    "paragraphs_cut": "paragraphs cut",
    "characters_cut": "characters cut",
}


def about_rule(rule: str) -> str:
    """Return what a rule counts, or why it removes, as a sentence."""
    text = _ABOUT.get(rule) or RULE_VALUES.get(rule, rule).replace("`", "")
    return f"{text[0].upper()}{text[1:]}."


def duplicates_cards(folder: Path, found: Mapping[str, Any]) -> Iterable[str]:
    """Return how many duplicates there were, `found` by the manifest, and the largest clusters."""
    sizes, largest = clusters(folder)
    shown = {name: found.get(name, 0) for name in _FACTS}
    facts = [
        [_FACTS[name], number(f"{count:,}")]
        for name, count in shown.items()
        if count or name in (EXACT_RULE, NEAR_RULE)
    ]
    many = [[f"{size:,} documents", number(f"{count:,}")] for size, count in list(sizes.items())[-SIZES:] if size > 1]
    yield grid([card(table(["duplicates", "count"], facts)), card(table(["stands for", "kept"], many))], "two")
    if largest:
        rows = [[_origins([each.origin]), number(f"{each.size:,}"), _removed(each), _preview(each)] for each in largest]
        heads = ["kept one", "documents", "removed for it", "how it begins"]
        yield card(table(heads, rows, stacks=True), heading="Largest clusters")


def _preview(cluster: Cluster) -> str:
    return cluster.text if len(cluster.text) < PREVIEW else f"{cluster.text}..."


def _removed(cluster: Cluster) -> Cell:
    rest = cluster.size - 1 - len(cluster.copies)
    return _origins(cluster.copies, f" and {rest:,} more" if cluster.copies and rest > 0 else "")


def _origins(origins: Sequence[str], rest: str = "") -> Cell:
    """Return a cell with names of files, wide enough for most of them."""
    names = ", ".join(f"<code>{escaped(origin)}</code>" for origin in origins)
    return Cell(f'<span style="display: inline-block; min-width: 14em">{names}{escaped(rest)}</span>')


def sample_parts(folder: Path, manifest: Mapping[str, Any]) -> Iterable[str]:
    """Return for each rule the samples of what it removed, after a line that opens them."""
    rules: dict[str, dict[str, Any]] = {}
    for of_source in manifest["settings"]["rules"].values():
        rules = of_source | rules
    found = samples(folder)
    twins = kept_documents(folder, {row["duplicate_of"] for rows in found.values() for row in rows} - {None})
    for rule, rows in found.items():
        inner = "".join(_sample(rule, row, twins) for row in rows)
        about = f'<p class="note">{escaped(about_rule(rule))}{_limits(rules.get(rule))}</p>'
        yield f"<details><summary>{escaped(rule)}: {len(rows):,}</summary>{about}{inner}</details>"


def _limits(rule: Mapping[str, Any] | None) -> str:
    if rule is None or rule["high"] == -1.0:
        return ""
    words = [f"at least {short(rule['low'])}"] if rule["low"] is not None else []
    words += [f"at most {short(rule['high'])}"] if rule["high"] is not None else []
    return escaped(f" Allowed: {' and '.join(words)}.")


def _sample(rule: str, row: Mapping[str, Any], twins: Mapping[str, tuple[str, str]]) -> str:
    text, start, twin = str(row["text"]), row.get("start") or 0, twins.get(row["duplicate_of"] or "")
    about = f'<p class="note">{escaped(" · ".join(_facts(rule, row, twin)))}</p>'
    if rule == NEAR_RULE and twin is not None:
        passage = twin[1][start : start + len(text) + SAMPLE_CHARACTERS]
        is_cut = len(text) >= SAMPLE_CHARACTERS
        own, of_twin = differences(text, passage, are_whole=not is_cut)
        if own:
            cuts = ((text, own, is_cut), (passage, of_twin, start + len(passage) < len(twin[1])))
            for shown, spans, goes_on in cuts:
                parts = excerpts(shown, spans, SAMPLE_CHARACTERS)
                about += marked(segments(shown, parts, is_cut_before=start > 0, is_cut_behind=goes_on))
            return about
    return about + marked(segments(text, [Excerpt(0, len(text), passages(text, rule))]))


def _facts(rule: str, row: Mapping[str, Any], twin: tuple[str, str] | None) -> list[str]:
    """Return where a removed document is from, its value, and of which document it is a copy."""
    facts, value = [str(row["origin"])], row["value"]
    if row["duplicate_of"]:
        facts.append(f"copy of {row['duplicate_of'] if twin is None else twin[0]}")
    if value is not None and rule in (EXACT_RULE, NEAR_RULE):
        facts.append(f"similarity {value:.3f}")
    elif value is not None and rule == CONTAMINATION_RULE:
        facts.append(f"holds {value:.0%} of the runs of an item")
    elif value is not None and rule not in (LICENSE, "c4.lorem", "c4.curly"):
        facts.append(f"value {value:.6g}")
    return facts
