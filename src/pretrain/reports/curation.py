"""The report of a corpus: what was read, what was removed and why, and what other thresholds would keep.

Everything on it follows from the corpus, so equal corpora have equal reports; no times are shown. Texts of a corpus
are hostile: all of them pass `escaped`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.data.curation.corpus_statistics import Threshold, clusters, languages, order_of, samples, thresholds
from pretrain.data.curation.manifest import add_all, read_manifest
from pretrain.data.curation.passages import passages
from pretrain.data.curation.rules import DUPLICATE_RULES, EXACT_RULE, LICENSE, NEAR_RULE, rule_settings
from pretrain.data.curation.writing import SAMPLE_CHARACTERS
from pretrain.errors import CheckpointError
from pretrain.files.atomic_files import write_atomically
from pretrain.reports.chart import WIDE, WIDTH, Bar, Histogram, Look, bar_chart, histogram, short
from pretrain.reports.page import Cell, Page, card, code, escaped, grid, marked, number, table

PAGE = "report.html"
ROWS = 20  # of a table of domains, licenses or languages
SOURCES = 8  # that have columns of their own
_READ, _REMOVED, _COPIES, _KEPT = 0, 1, 3, 2  # colors
_ABOUT = {
    LICENSE: "The license may not be used", EXACT_RULE: "The text is that of another document",
    NEAR_RULE: "The text is almost that of another document",
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
    page = Page("Curated corpus", f"Fingerprint {manifest['fingerprint']}, made by pretrain {_version(manifest)}")
    page.tiles = [
        (f"{counts['kept']:,}", f"documents kept of {counts['read']:,}"),
        (_percent(counts["kept"], counts["read"]), "of the documents"),
        (short(manifest["characters"]), "characters kept"), (f"{len(sources):,}", "sources"),
        (f"{len(manifest['licenses']):,}", "licenses"),
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
    page.add("Duplicates", grid(_duplicates(folder, manifest), "one"))
    if "decontamination" in manifest:
        page.add(
            "Evaluation sets", card(_sets(manifest["decontamination"])),
            note="Items of which runs of words stand in the corpus, by each published definition. GPT-3: any run. "
            "PaLM: 70 % of the runs of 8 words. Llama 2: 80 % (dirty) or 20 % (not clean) of the words lie in runs of "
            f"11. Runs in more than {manifest['decontamination']['ignore_above']} documents count nowhere.",
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
        "Samples of what was removed", *_samples(folder, manifest),
        note=f"Chosen by hash, not by hand. Of a long text the first {SAMPLE_CHARACTERS:,} characters are shown, and "
        "what the rule counts in them is marked.",
    )  # fmt: skip
    return page.render()


def _version(manifest: Mapping[str, Any]) -> str:
    return str(manifest["made"].get("pretrain", "?"))


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
    rows = []
    for name, source in sources.items():
        documents = source["documents"]
        rules = sum(rule["first"] for rule in documents["removed"].values())
        unusable = sum(documents["unusable"].values())
        copies = documents["read"] - unusable - rules - documents["kept"]
        rows.append(
            [name, source["license"], source["language"] or "not stated"]
            + [number(f"{count:,}") for count in (documents["read"], unusable, rules, copies, documents["kept"])]
            + [number(_percent(documents["kept"], documents["read"])), number(f"{source['characters']:,}")]
        )
    heads = ["source", "license", "language", "read", "unusable", "by rules", "duplicates", "kept", "", "characters"]
    return table(heads, rows)


def _rules(sources: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    shown = sorted(sources, key=lambda name: (-sources[name]["documents"]["read"], name))[:SOURCES]
    rows = []
    for rule in sorted(counts["removed"], key=order_of):
        each = [sources[name]["documents"]["removed"].get(rule) for name in shown]
        rows.append(
            [
                Cell(f'<code style="white-space: nowrap">{escaped(rule)}</code>'),
                _three(counts["removed"][rule]),
                *map(_three, each),
                # on a narrow screen the table scrolls; without a width this column would make each row many lines high
                Cell(f'<span style="display: inline-block; min-width: 16em">{escaped(_about(rule))}</span>'),
            ]
        )
    rest = [] if len(sources) <= SOURCES else [f"and {len(sources) - SOURCES} smaller sources, in the column of all"]
    heads = ["rule", "all: first, would, alone", *shown, "what it counts"]
    return table(heads, rows) + "".join(f'<p class="note">{escaped(text)}</p>' for text in rest)


def _three(count: Mapping[str, int] | None) -> Any:
    return number("" if count is None else f"{count['first']:,} · {count['would']:,} · {count['alone']:,}")


def _about(rule: str) -> str:
    return (
        _ABOUT.get(rule)
        or DUPLICATE_RULES.get(rule)
        or "; ".join(dict.fromkeys(rule_settings().get(rule, {}).values()))
    )


def _threshold(each: Threshold, sources: int) -> str:
    rule = each.rule
    low = [] if rule.low is None else [(float(rule.low), f"at least {short(rule.low)}")]
    high = [] if rule.high is None else [(float(rule.high), f"at most {short(rule.high)}")]
    look = Look(
        f"{rule.name}: {rule.value}", x=rule.value.replace("_", " "), log_x=each.is_log, log_y=True, marks=[*low, *high]
    )
    drawn = histogram(Histogram(each.edges.tolist(), each.counts.tolist(), "documents"), look)
    parts = [f'<p class="note">{escaped(_about(rule.name))}.</p>' if _about(rule.name) else "", drawn]
    for words, mark, kept in (("at least", rule.low, each.low_kept), ("at most", rule.high, each.high_kept)):
        if kept:
            cells = [number(f"{count:,}") for _, count in kept]
            heads = [words, *(short(value) for value, _ in kept)]
            parts.append(_row_of(heads, ["kept", *cells], [value == mark for value, _ in kept]))
    if each.unmeasured:
        parts.append(f'<p class="note">{each.unmeasured:,} documents have no value, and stay.</p>')
    some = "" if len(each.sources) == sources else f" ({', '.join(each.sources[:SOURCES])})"
    return card(*parts, heading=f"{rule.name}{some}")


def _row_of(heads: Sequence[str], cells: Sequence[Any], strong: Sequence[bool]) -> str:
    """Return a table of one row; the columns that are `strong` hold what was chosen."""
    shown = [*cells[:1], *(_strong(cell) if is_so else cell for cell, is_so in zip(cells[1:], strong, strict=True))]
    return table(heads, [shown])


def _strong(cell: Any) -> Any:
    return type(cell)(f"<b>{cell.html}</b>", cell.is_number)


def _duplicates(folder: Path, manifest: Mapping[str, Any]) -> Iterable[str]:
    sizes, largest = clusters(folder)
    found = manifest["duplicates"]
    facts = [[name.replace("_", " "), number(f"{count:,}")] for name, count in found.items() if isinstance(count, int)]
    many = [[f"{size:,} documents", number(f"{count:,}")] for size, count in list(sizes.items())[-ROWS:] if size > 1]
    yield grid([card(table(["duplicates", "documents"], facts)), card(table(["stands for", "kept"], many))], "two")
    if largest:
        rows = [[number(f"{each.size:,}"), code(each.origin), each.text] for each in largest]
        yield card(table(["copies", "kept one", "how it begins"], rows, stacks=True), heading="Largest clusters")


def _personal_data(found: Mapping[str, Any]) -> str:
    rows = [[kind, number(f"{found['replaced'].get(kind, 0):,}")] for kind in found["kinds"]]
    return table(["kind", "replaced" if found["replacement"] == "placeholder" else "cut out"], rows)


def _sets(found: Mapping[str, Any]) -> str:
    """Return the table of evaluation sets: items, and how many each definition calls contaminated."""
    heads = ["set", "items", "not checkable", "GPT-3", "one document", "PaLM", "Llama 2 dirty", "not clean", "longest"]
    rows = []
    for name, each in found["sets"].items():
        counts = [each["items"], each["not_checkable"], *each["contaminated"].values(), each["longest_words"]]
        rows.append([name, *(number(f"{count:,}") for count in counts)])
    facts = f"{found['documents']:,} documents hold an item; they are to {found['action']}."
    return f'{table(heads, rows)}<p class="note">{escaped(facts)}</p>'


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
        cards.append(card(table([head, "documents", "characters", ""], rows), rest, heading=heading))
    for name, head, heading in (("domains_top", "domain", "Domains"), ("dates", "year", "Years")):
        found = list(manifest[name].items())[:ROWS]
        rows = [[each, number(f"{count:,}"), number(_percent(count, counts["kept"]))] for each, count in found]
        cards.append(card(table([head, "documents", ""], rows), heading=heading) if rows else "")
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
    return card(table(["language", "documents", "kept", ""], rows), rest, heading=heading)


def _samples(folder: Path, manifest: Mapping[str, Any]) -> Iterable[str]:
    rules: dict[str, dict[str, Any]] = {}
    for of_source in manifest["settings"]["rules"].values():
        rules = of_source | rules
    for rule, rows in samples(folder).items():
        inner = "".join(_sample(rule, row) for row in rows)
        about = f'<p class="note">{escaped(_about(rule))}{_limits(rules.get(rule))}</p>'
        yield f"<details><summary>{escaped(rule)}: {len(rows):,}</summary>{about}{inner}</details>"


def _limits(rule: Mapping[str, Any] | None) -> str:
    if rule is None or rule["high"] == -1.0:
        return ""
    words = [f"at least {short(rule['low'])}"] if rule["low"] is not None else []
    words += [f"at most {short(rule['high'])}"] if rule["high"] is not None else []
    return escaped(f": {' and '.join(words)}")


def _sample(rule: str, row: Mapping[str, Any]) -> str:
    facts = [str(row["origin"])]
    if row["value"] is not None and order_of(rule)[0] and rule not in ("c4.lorem", "c4.curly"):
        facts.append(f"value {row['value']:.6g}")
    if row["duplicate_of"]:
        facts.append(f"copy of {row['duplicate_of']}")
    if row.get("similarity") is not None:
        facts.append(f"similarity {row['similarity']:.3f}")
    text = str(row["text"])
    return f'<p class="note">{escaped(" · ".join(facts))}</p>{marked(text, passages(text, rule))}'
