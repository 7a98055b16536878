"""The report of a corpus: what was read, what was removed and why, and what other thresholds would keep.

Everything on it follows from the corpus, so equal corpora have equal reports; no times are shown. Texts of a corpus
are hostile: all of them pass `escaped`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.config.curate import preset_with
from pretrain.data.curation.corpus_statistics import Threshold, languages, order_of, thresholds
from pretrain.data.curation.manifest import add_all, read_manifest
from pretrain.data.curation.rules import DUPLICATE_RULES, EXACT_RULE, NEAR_RULE
from pretrain.data.curation.writing import SAMPLE_CHARACTERS
from pretrain.errors import CheckpointError
from pretrain.files.atomic_files import write_atomically
from pretrain.reports.chart import WIDE, WIDTH, Bar, Histogram, Look, bar_chart, histogram, short
from pretrain.reports.curated_documents import about_rule, duplicates_cards, sample_parts
from pretrain.reports.page import Cell, Page, card, escaped, grid, number, table

PAGE = "report.html"
ROWS = 20  # of a table of domains, licenses or languages
SOURCES = 8  # that have columns of their own
_READ, _REMOVED, _COPIES, _KEPT = 0, 1, 3, 2  # colors
_DEFINITIONS = {  # of contamination, by the names that the manifest has; llama_3 is a curve and not shown
    "gpt_3": "GPT-3", "one_document": "one document", "palm": "PaLM", "llama_2_dirty": "Llama 2 dirty",
    "llama_2_not_clean": "Llama 2 not clean",
}  # fmt: skip


def write_corpus_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a corpus into its folder or to `output`; return its path.

    Raises DataError if the folder holds no sound corpus, CheckpointError if the report cannot be written.
    """
    path = output or folder / PAGE
    text = corpus_page(folder)
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}. Try another output=report.html.") from error
    return path


def corpus_page(folder: Path) -> str:
    """Return the report of a corpus as HTML."""
    manifest = read_manifest(folder)
    sources: dict[str, Any] = manifest["sources"]
    counts = add_all(source["documents"] for source in sources.values())
    about = f"{_rules_in_words(manifest['settings'])} Fingerprint {manifest['fingerprint']}, made by pretrain"
    page = Page(f"Corpus {folder.resolve().name}", f"{about} {_version(manifest)}")
    page.tiles = [
        (f"{counts['kept']:,}", f"documents kept of {counts['read']:,}"),
        (_percent(counts["kept"], counts["read"]), "of the documents"),
        (short(manifest["characters"]), "characters kept"), (f"{len(sources):,}", _noun(len(sources), "source")),
        (f"{len(manifest['licenses']):,}", _noun(len(manifest["licenses"]), "license")),
    ]  # fmt: skip
    page.add("From read to kept", card(_waterfall(counts)), note="Each document is counted once: by what removed it.")
    page.add("Sources", card(_sources(sources)))
    page.add(
        "Rules", card(_rules(sources, counts)),
        note="First: the rule is the reason. Would: the rule removes it, perhaps after another. Alone: no other rule "
        "removes it, so without this one it would stay.",
    )  # fmt: skip
    of_language = manifest["settings"].get("rules_of_languages", {})
    found = thresholds(
        folder, {name: rules for name, rules in manifest["settings"]["rules"].items() if name not in of_language}
    )
    page.add(
        "Thresholds", grid(_threshold(each, len(sources)) for each in found),
        note="The values of all usable documents; heights are logarithmic. The tables say how many documents the rules "
        "would keep with another threshold, all others unchanged, before duplicates are removed."
        + (f" Not shown: {', '.join(of_language)}, with thresholds for each language." if of_language else ""),
    )  # fmt: skip
    page.add("Duplicates", grid(duplicates_cards(folder, manifest["duplicates"]), "one"))
    if "decontamination" in manifest:
        page.add(
            "Evaluation sets", card(_sets(manifest["decontamination"])),
            note=_definitions(manifest["decontamination"]),
        )  # fmt: skip
    if (personal := manifest.get("personal_data", {})).get("kinds"):
        page.add(
            "Personal data", card(_personal_data(personal)),
            note=f"Found by pattern and check digit. Not looked for: {', '.join(personal['not_covered'])}.",
        )  # fmt: skip
    page.add(
        "Licenses, languages and domains",
        grid([*_origins(manifest, counts), _found_languages(folder, manifest)], "two"),
        note="A license that a page names is often that of a picture or of a theme, and that of a data set is not that "
        "of its texts. Evidence says where each was found.",
    )  # fmt: skip
    page.add(
        "Samples of what was removed", *sample_parts(folder, manifest),
        note=f"Chosen by hash, not by hand. Of a long text the first {SAMPLE_CHARACTERS:,} characters are shown, and "
        "what the rule counts in them is marked. Of a near-duplicate and of the text that stays for it, the first "
        "differences are shown.",
    )  # fmt: skip
    return page.render()


def _version(manifest: Mapping[str, Any]) -> str:
    return str(manifest["made"].get("pretrain", "?"))


def _rules_in_words(settings: Mapping[str, Any]) -> str:
    """Return by which preset of rules the documents of each source were judged, as a sentence."""
    chosen: dict[str, list[str]] = {}
    names: dict[str, str] = {}  # of presets, as most sources of many have the same rules
    for source, rules in settings["rules"].items():
        key = json.dumps(rules)
        if key not in names:
            names[key] = preset_with(rules) or "thresholds of their own"
        by_language = source in settings.get("rules_of_languages", {})
        chosen.setdefault("thresholds of each language" if by_language else names[key], []).append(source)
    if len(chosen) == 1:
        return f"Rules: {next(iter(chosen))}."
    parts = [f"{preset} for {', '.join(sources[:SOURCES])}" for preset, sources in chosen.items()]
    return f"Rules: {'; '.join(parts)}."


def _noun(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def _percent(part: float, whole: float) -> str:
    share = part / whole if whole else 0.0
    return "< 0.1%" if 0 < share < 0.001 else f"{share:.1%}"


def _both(draw: Any) -> str:
    """Return a drawing for wide screens and the same for narrow ones."""
    return "".join(
        f'<div class="{kind}">{draw(width)}</div>' for kind, width in (("wide", WIDE), ("narrow", WIDTH - 40))
    )


def _removals(counts: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Return name, documents and color of each reason to remove, in the order in which they are tried."""
    steps = [(f"unusable: {name}", count, _REMOVED) for name, count in sorted(counts["unusable"].items())]
    removed = counts["removed"]
    steps += [(rule, removed[rule]["first"], _REMOVED) for rule in sorted(removed, key=order_of)]
    steps += [(about, counts.get(name, 0), _COPIES) for name, about in DUPLICATE_RULES.items()]
    return [step for step in steps if step[1]]


def _waterfall(counts: Mapping[str, Any]) -> str:
    read = counts["read"]
    left, bars = float(read), [Bar("read", float(read), f"{read:,}", color=_READ)]
    for name, count, color in _removals(counts):
        left -= count
        bars.append(Bar(name, float(count), f"{count:,} ({_percent(count, read)})", left, color))
    bars.append(
        Bar("kept", float(counts["kept"]), f"{counts['kept']:,} ({_percent(counts['kept'], read)})", 0.0, _KEPT)
    )
    return _both(lambda width: bar_chart(bars, Look("Documents from read to kept", width=width)))


def _sources(sources: Mapping[str, Any]) -> str:
    """Return the table of sources; what removes no document of any source has no column."""
    every = [source["documents"] for source in sources.values()]
    others = [rule for rule in DUPLICATE_RULES if rule not in (EXACT_RULE, NEAR_RULE)]
    others = [rule for rule in others if any(documents.get(rule) for documents in every)]
    rows = []
    for name, source in sources.items():
        documents = source["documents"]
        removed = [
            sum(documents["unusable"].values()), sum(rule["first"] for rule in documents["removed"].values()),
            documents.get(EXACT_RULE, 0) + documents.get(NEAR_RULE, 0), *(documents.get(rule, 0) for rule in others),
        ]  # fmt: skip
        rows.append(
            [name, source["license"], source["language"] or "not stated"]
            + [number(f"{count:,}") for count in (documents["read"], *removed, documents["kept"])]
            + [number(_percent(documents["kept"], documents["read"])), number(f"{source['characters']:,}")]
        )
    return table(
        ["source", "license", "language", "read", "unusable", "by rules", "duplicates",
         *(DUPLICATE_RULES[rule] for rule in others), "kept", "share kept", "characters"],
        rows, stacks=True,
    )  # fmt: skip


def _rules(sources: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    shown = sorted(sources, key=lambda name: (-sources[name]["documents"]["read"], name))[:SOURCES]
    shown = shown if len(sources) > 1 else []  # the column of all says it
    rows = []
    for rule in sorted(counts["removed"], key=order_of):
        each = [sources[name]["documents"]["removed"].get(rule) for name in shown]
        rows.append(
            [
                Cell(f'<code style="white-space: nowrap">{escaped(rule)}</code>'),
                _three(counts["removed"][rule]),
                *map(_three, each),
                # without a width this column would make each row of many sources many lines high
                Cell(f'<span style="display: inline-block; min-width: 16em">{escaped(about_rule(rule))}</span>'),
            ]
        )
    rest = [] if len(sources) <= SOURCES else [f"and {len(sources) - SOURCES} smaller sources, in the column of all"]
    heads = ["rule", "all: first · would · alone", *shown, "what it counts"]
    return table(heads, rows, stacks=True) + "".join(f'<p class="note">{escaped(text)}</p>' for text in rest)


def _three(count: Mapping[str, int] | None) -> Any:
    return number("" if count is None else f"{count['first']:,} · {count['would']:,} · {count['alone']:,}")


def _threshold(each: Threshold, sources: int) -> str:
    rule = each.rule
    low = [] if rule.low is None else [(float(rule.low), f"at least {short(rule.low)}")]
    high = [] if rule.high is None else [(float(rule.high), f"at most {short(rule.high)}")]
    look = Look(
        f"{rule.name}: {rule.value}", x=rule.value.replace("_", " "), log_x=each.is_log, log_y=True, marks=[*low, *high]
    )
    drawn = histogram(Histogram(each.edges.tolist(), each.counts.tolist(), "documents"), look)
    parts = [f'<p class="note">{escaped(about_rule(rule.name))}</p>', drawn]
    for words, mark, kept in (("at least", rule.low, each.low_kept), ("at most", rule.high, each.high_kept)):
        if kept:
            cells = [number(f"{count:,}") for _, count in kept]
            heads = [words, *(short(value) for value, _ in kept)]
            parts.append(_row_of(heads, ["kept", *cells], [value == mark for value, _ in kept]))
    if each.unmeasured:
        one = each.unmeasured == 1
        words = "document has no value, and stays" if one else "documents have no value, and stay"
        parts.append(f'<p class="note">{each.unmeasured:,} {words}.</p>')
    some = "" if len(each.sources) == sources else f" ({', '.join(each.sources[:SOURCES])})"
    return card(*parts, heading=f"{rule.name}{some}")


def _row_of(heads: Sequence[str], cells: Sequence[Any], strong: Sequence[bool]) -> str:
    """Return a table of one row; the columns that are `strong` hold what was chosen."""
    shown = [*cells[:1], *(_strong(cell) if is_so else cell for cell, is_so in zip(cells[1:], strong, strict=True))]
    return table(heads, [shown])


def _strong(cell: Any) -> Any:
    return type(cell)(f"<b>{cell.html}</b>", cell.is_number)


def _personal_data(found: Mapping[str, Any]) -> str:
    rows = [[kind, number(f"{found['replaced'].get(kind, 0):,}")] for kind in found["kinds"]]
    return table(["kind", "replaced" if found["replacement"] == "placeholder" else "cut out"], rows)


def _definitions(found: Mapping[str, Any]) -> str:
    """Return what the columns of the evaluation sets count, as sentences."""
    words = found["words"]
    return (
        f"Items that stand in the corpus, by each published definition. GPT-3: any run of {words} words. One document: "
        f"more than {found['share']:.0%} of these runs are in one document. PaLM: 70 % of the runs of 8 words. Llama "
        "2: 80 % (dirty) or 20 % (not clean) of the words lie in runs of 11. Runs in more than "
        f"{found['ignore_above']:,} documents are boilerplate and count nowhere. Not checkable: no part of the item "
        "has 8 words, or all its runs are boilerplate. Longest: words of the longest passage that an item and a "
        "document share."
    )


def _sets(found: Mapping[str, Any]) -> str:
    """Return the table of evaluation sets: items, and how many each definition calls contaminated."""
    heads = ["set", "items", "not checkable", *_DEFINITIONS.values(), "longest"]
    rows = []
    for name, each in found["sets"].items():
        by_definition = (each["contaminated"][definition] for definition in _DEFINITIONS)
        counts = [each["items"], each["not_checkable"], *by_definition, each["longest_words"]]
        rows.append([name, *(number(f"{count:,}") for count in counts)])
    share = f"more than {found['share']:.0%} of an item's runs"
    if found["action"] == "drop":
        facts = (
            f"Documents that held {share} and were dropped: {found['documents']:,}. The table is about what is left."
        )
    else:
        facts = f"Documents that hold {share} and are marked in the column contaminates: {found['documents']:,}."
    return f'{table(heads, rows, stacks=True)}<p class="note">{escaped(facts)}</p>'


def _origins(manifest: Mapping[str, Any], counts: Mapping[str, Any]) -> list[str]:
    cards = []
    is_detected = manifest["settings"].get("language", {}).get("model") is not None
    stated = "Languages of what is kept" if is_detected else "Languages, as stated by the sources"
    for name, heading in (
        ("licenses", "Licenses"),
        ("license_evidence", "Evidence of licenses"),
        ("languages", stated),
    ):
        found = sorted(manifest.get(name, {}).items(), key=lambda item: (-item[1]["characters"], item[0]))
        rows = [
            [each, number(f"{count['documents']:,}"), number(f"{count['characters']:,}"),
             number(_percent(count["characters"], manifest["characters"]))]
            for each, count in found[:ROWS]
        ]  # fmt: skip
        rest = f'<p class="note">and {len(found) - ROWS:,} more</p>' if len(found) > ROWS else ""
        head = {"licenses": "license", "languages": "language"}.get(name, "evidence")
        cards.append(card(table([head, "documents", "characters", "share"], rows), rest, heading=heading))
    for name, head, heading in (("domains_top", "domain", "Domains"), ("dates", "year", "Years")):
        found = list(manifest[name].items())[:ROWS]
        rows = [[each, number(f"{count:,}"), number(_percent(count, counts["kept"]))] for each, count in found]
        cards.append(card(table([head, "documents", "share"], rows), heading=heading) if rows else "")
    return cards


def _found_languages(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Return a table of the languages of all usable documents, also those that were removed, if any was detected."""
    model = manifest["settings"].get("language", {}).get("model")
    if model is None:
        return ""
    found = languages(folder)
    rows = [
        [name, number(f"{read:,}"), number(f"{kept:,}"), number(_percent(kept, read))]
        for name, (read, kept) in list(found.items())[:ROWS]
    ]
    rest = f'<p class="note">and {len(found) - ROWS:,} more</p>' if len(found) > ROWS else ""
    heading = f"Languages of all usable documents, by {model['file']}"
    return card(table(["language", "documents", "kept", "share kept"], rows), rest, heading=heading)
