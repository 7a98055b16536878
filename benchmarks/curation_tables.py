"""Tables of the curation of text, one function for each saved result."""

from statistics import fmean
from typing import Any

from markdown_table import comparisons, markdown, percent


def near_duplicates(result: dict[str, Any]) -> str:
    """Return recall by similarity for each preset, precision, and what was compared with datatrove."""
    figures = result["figures"]
    recalls = {name.partition(": ")[2]: bins for name, bins in figures.items() if name.startswith("recall")}
    rows = [(each, *(recall[each] for recall in recalls.values())) for each in next(iter(recalls.values()))]
    rest = [("planted pairs of 1,000 articles", figures["articles"])]
    rest += [(f"datatrove's MinHash: {name}", value) for name, value in figures["datatrove"].items()]
    rest += [(name, value) for name, value in figures.items() if isinstance(value, str) and name != "articles"]
    tables = [
        markdown(("similarity of the pair", *(f"found by {name}" for name in recalls)), rows),
        markdown(("removed documents with a kept twin, by brute force", "share"), list(figures["precision"].items())),
        markdown(("what", "result"), rest),
    ]
    return "\n\n".join([*tables, comparisons(result)])


def personal_data(result: dict[str, Any]) -> str:
    """Return the tables of personal data: each kind, and texts that have none."""
    figures = result["figures"]
    lines = ["| kind | labeled | recall | found | precision |", "|---|---|---|---|---|"]
    for kind, each in figures["kinds"].items():
        recall = f"{each['recalled'] / each['labeled']:.3f}" if each["labeled"] else ""
        precision = f"{each['right'] / each['found']:.3f}" if each["found"] else ""
        lines.append(f"| {kind} | {each['labeled']} | {recall} | {each['found']} | {precision} |")
    negatives, reviews = figures["negatives"], figures["reviews"]
    lines += ["", "| what | result |", "|---|---|"]
    lines.append(f"| negatives with a false find | {negatives['with a false find']} of {negatives['texts']} |")
    lines.append(f"| found in reviews | {reviews['found']} in {reviews['texts']:,} |")
    lines.append(f"| all kinds, MB/s of reviews | {reviews['MB/s']} |")
    return "\n".join(lines)


def curation_agreement(result: dict[str, Any]) -> str:
    """Return how many texts each filter of datatrove decides as we do, and how often each rule removes one."""
    filters = result["figures"]["filters"]
    columns = tuple(next(iter(filters.values())))
    rows = [(f"`{name}`", *(f"{counts[each]:,}" for each in columns)) for name, counts in filters.items()]
    removed = [(f"`{rule}`", f"{count:,}") for rule, count in result["figures"]["removed"].items()]
    heading = (f"filter of datatrove, {result['settings']['texts']:,} texts", *columns)
    tables = [markdown(heading, rows), markdown(("rule", "texts that it removes"), removed)]
    if other_words := result["figures"].get("words of spaCy"):
        names = tuple(next(iter(other_words.values())))
        columns = ("its words those of spaCy, unchanged English texts", *names, "decided alike")
        tables.append(markdown(columns, [(f"`{name}`", *alike(counts)) for name, counts in other_words.items()]))
    return "\n\n".join(tables)


def alike(counts: dict[str, int]) -> tuple[str, ...]:
    """Return the counts of texts, and the share of those that both keep or both remove."""
    share = (counts["kept by both"] + counts["removed by both"]) / sum(counts.values())
    return (*(f"{count:,}" for count in counts.values()), f"{share:.1%}")


TIMED_BY_ROUND = ("two workers over one", "new threshold, MB/s")


def curation_speed(result: dict[str, Any]) -> str:
    """Return the comparison and what else was timed, or the peak memory by number of documents."""
    if peaks := result["figures"].get("peak MiB of the largest process, by documents"):
        rows = [(count, f"{peak} MiB") for count, peak in peaks.items()]
        return markdown(("documents", "peak memory of the largest process"), rows)
    others = [(name, ", ".join(f"{each:.2f}" for each in result["figures"][name])) for name in TIMED_BY_ROUND]
    return f"{comparisons(result)}\n\n{markdown(('what', 'each round'), others)}"


def curation_worth(result: dict[str, Any]) -> str:
    """Return what was planted and kept, and how well the models of both corpora do."""
    arms, settings, found = result["arms"], result["settings"], result["difference"]
    kept = [
        (kind, f"{count:,}", *(f"{arm['kept'].get(kind, 0):,}" for arm in arms.values()))
        for kind, count in result["planted"].items()
    ]
    scores = [
        (name, f"{arm['tokens'][0]:,}", f"**{fmean(arm['bits_per_byte']):.3f}**",
         ", ".join(f"{value:.3f}" for value in arm["bits_per_byte"]))
        for name, arm in arms.items()
    ]  # fmt: skip
    interval = f"{found['mean']:+.3f} (95 %: {found['low']:+.3f} to {found['high']:+.3f})"
    scores.append(("curated minus as it is", "", interval, ""))
    head = (f"`{settings['model']}`, {settings['steps']} steps", "tokens", "bits per byte", "by seed")
    return f"{markdown(('documents', 'planted', *arms), kept)}\n\n{markdown(head, scores)}"


def extraction(result: dict[str, Any]) -> str:
    """Return F1 and speed of each extractor."""
    rows = [
        (f"`{name}`", f"**{each['f1']:.3f}**", f"{each['precision']:.3f}", f"{each['recall']:.3f}",
         f"{each['pages_per_s']:.0f}", f"{each['megabytes_per_s']:.1f}")
        for name, each in result["figures"].items()
    ]  # fmt: skip
    head = (f"{result['settings']['pages']} pages", "F1", "precision", "recall", "pages/s", "MB of HTML/s")
    return f"{markdown(head, rows)}\n\n{comparisons(result)}"


def language_identification(result: dict[str, Any]) -> str:
    """Return how many paragraphs and sentences of each language are found to be in it, the worst languages first."""
    right = result["figures"]["right"]
    ordered = sorted(right, key=lambda language: (right[language]["paragraphs"], right[language]["sentences"]))
    kinds = ("paragraphs", "sentences")
    rows = [(f"`{name}`", *(percent(right[name][kind]) for kind in kinds)) for name in ordered[:12]]
    rest = ordered[12:]
    rows.append(
        (
            f"{len(rest)} others, the worst of each",
            *(percent(min(right[name][kind] for name in rest)) for kind in kinds),
        )
    )
    speed = result["figures"]["million characters a second"]
    unknown = ", ".join(result["figures"]["unknown to the model"])
    note = f"{speed:.1f} million characters a second on one core. The model does not know {unknown}."
    return f"{markdown(('language', *kinds), rows)}\n\n{note}"


def curation_web_speed(result: dict[str, Any]) -> str:
    """Return the comparisons of the whole chain, and the peak memory."""
    peaks = result["figures"]["peak MiB of the largest process"]
    memory = markdown(
        ("how", "peak memory of the largest process"), [(how, f"{each} MiB") for how, each in peaks.items()]
    )
    return f"{comparisons(result)}\n\n{memory}"
