"""The stages of decontamination, after those of duplicates.

runs          one task   items of evaluation sets -> the runs of words to look for
hits          a unit     texts as they would be written -> which of those runs each holds
held          a unit     hits of the documents that are kept
verdicts      one task   hits of all units -> what the definitions say of each item, and the contaminated documents
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pretrain.data.curation.contamination.config import Action, DecontaminateConfig
from pretrain.data.curation.contamination.eval_sets import read_items, set_records
from pretrain.data.curation.contamination.overlap import (
    CONTAMINATED,
    DIRTY,
    GRAM,
    HIT,
    NOT_CLEAN,
    OVERLAP_VERSION,
    PALM_SHARE,
    POSTING,
    Finder,
    Overlaps,
    Rows,
    Verdicts,
    grams_of_items,
)
from pretrain.data.curation.duplicates import Fates
from pretrain.data.curation.engine import Counts, Stage, Task, counts_of
from pretrain.data.curation.near_duplicates.shingles import Ints
from pretrain.data.curation.near_duplicates.shuffle_files import concatenated, map_partition, write_rows
from pretrain.data.curation.near_duplicates.tasks import written_text
from pretrain.data.curation.row_groups import RowGroups, row_groups
from pretrain.data.curation.rules import KEPT
from pretrain.data.curation.units import read_unit

ITEMS = pa.schema([("set", pa.string()), ("key", pa.string()), ("location", pa.string()), ("words", pa.int64())])
VERDICTS = pa.schema(
    [("set", pa.string()), ("key", pa.string()), ("location", pa.string()), ("words", pa.int64()),
     ("checkable", pa.bool_()), ("ignored", pa.int64()), ("any_run", pa.bool_()), ("share", pa.float64()),
     ("palm", pa.float64()), ("llama_2", pa.float64()), ("llama_3", pa.float64()), ("longest", pa.int64())]
)  # fmt: skip
CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # Llama 3: shares of words above which items are counted


def decontamination_stages(
    config: DecontaminateConfig, known: dict[str, str], c4: Mapping[str, Any], units: int
) -> list[Stage]:
    """Return the stages in order, and add their folders to `known`; none without sets.

    `known` has the folders of the stages before. Raises ConfigError or DataError for a set that cannot be read.
    """
    if not config.sets:
        return []
    sets: dict[str, Any] = {"sets": set_records(config), "fields": config.fields, "words": config.words}
    rule = {"share": config.share, "ignore_above": config.ignore_above, "drop": config.action is Action.drop}
    of_texts = {name: known[name] for name in ("units", "read")}
    runs = Stage("runs", find_runs, 1, OVERLAP_VERSION, sets, {})
    hits = Stage("hits", find_hits, units, OVERLAP_VERSION, {"c4": dict(c4)}, of_texts | {"runs": runs.folder})
    held = Stage("held", hits_of_kept, units, OVERLAP_VERSION, {}, dict(known) | {"hits": hits.folder})
    inputs = {"runs": runs.folder, "held": held.folder}
    verdicts = Stage("verdicts", judge_items, 1, OVERLAP_VERSION, {"sets": list(sets["sets"]), **rule}, inputs)
    known["verdicts"] = verdicts.folder
    return [runs, hits, held, verdicts]


def find_runs(task: Task) -> Counts:
    """Write the runs of the items of all sets, and the items themselves without their texts."""
    settings = task.settings
    items = [
        item
        for name, record in settings["sets"].items()
        for item in read_items(name, record["path"], settings["fields"])
    ]
    grams, postings, words = grams_of_items(items, settings["words"])
    for name, rows in (("grams.rows", grams), ("postings.rows", postings)):
        write_rows(task.output(name), rows, np.zeros(len(rows), np.int64), 1)
    with RowGroups(task.output("items.parquet"), ITEMS) as output:
        columns: dict[str, Any] = {name: [getattr(item, name) for item in items] for name in ("set", "key", "location")}
        output.write(columns | {"words": words})
    return {"items": len(items)}


def find_hits(task: Task) -> Counts:
    """Write which runs the documents of a unit hold, whatever becomes of the documents."""
    source, _ = read_unit(task)
    finder = Finder(map_partition(task.input("runs", "grams.rows", 0), 0, GRAM))
    c4, position, found = task.settings["c4"][source], 0, list[Rows]()
    for table in row_groups(task.input("read", "documents.parquet"), ["text"]):
        texts = [written_text(text, c4) for text in table["text"].to_pylist()]
        documents, grams = finder.find(texts)
        rows = np.zeros(len(documents), HIT)
        rows["document"] = (np.uint64(task.index) << np.uint64(32)) + (documents + position).astype(np.uint64)
        rows["gram"] = grams
        found.append(rows)
        position += len(texts)
    _write_hits(task, concatenated(found, HIT))
    return {}


def hits_of_kept(task: Task) -> Counts:
    """Write the hits of those documents that neither a rule nor a duplicate removes."""
    hits, fates = map_partition(task.input("hits", "hits.rows"), 0, HIT), Fates(task)
    first = np.concatenate(
        [
            np.empty(0, np.int16),
            *(table["first"].to_numpy() for table in row_groups(task.input("decide", "decisions.parquet"))),
        ]
    )
    documents = np.unique(hits["document"])
    is_kept = [
        first[int(document) & 0xFFFFFFFF] == KEPT and fates.of(int(document)).removed_by is None
        for document in documents.tolist()
    ]
    _write_hits(task, hits[np.isin(hits["document"], documents[np.array(is_kept, bool)])])
    return {}


def _write_hits(task: Task, rows: Rows) -> None:
    write_rows(task.output("hits.rows"), rows, np.zeros(len(rows), np.int64), 1)


def judge_items(task: Task) -> Counts:
    """Write the verdict on each item and the contaminated documents; counts: by set.

    Boilerplate is counted first, file by file; what is left has at most `ignore_above` rows for each run.
    """
    settings = task.settings
    grams = map_partition(task.input("runs", "grams.rows"), 0, GRAM)
    postings = np.array(map_partition(task.input("runs", "postings.rows"), 0, POSTING))
    items = pa.concat_tables([*row_groups(task.input("runs", "items.parquet"))])
    files = [map_partition(path, 0, HIT) for path in task.inputs("held", "hits.rows")]
    frequency = np.zeros(len(grams), np.int64)
    for file in files:
        frequency += np.bincount(file["gram"], minlength=len(grams))
    ignored = frequency > settings["ignore_above"]
    hits = concatenated([file[~ignored[file["gram"]]] for file in files], HIT)
    sets = np.array([settings["sets"].index(name) for name in items["set"].to_pylist()], np.int64)
    overlaps = Overlaps(grams, postings, items["words"].to_numpy(), ignored)
    contaminated = _contaminated(overlaps, hits, sets, settings["share"])
    if settings["drop"]:
        hits = hits[~np.isin(hits["document"], contaminated["document"])]
    verdicts = overlaps.verdicts(hits)
    write_rows(task.output("documents.rows"), contaminated, np.zeros(len(contaminated), np.int64), 1)
    with RowGroups(task.output("items.parquet"), VERDICTS) as output:
        output.write({name: items[name] for name in ("set", "key", "location")} | verdicts.columns())
    found = {name: _of_set(verdicts, sets == number, settings["share"]) for number, name in enumerate(settings["sets"])}
    return {"sets": found, "documents": len(contaminated), "boilerplate": int(ignored.sum())}


def _contaminated(overlaps: Overlaps, hits: Rows, sets: Ints, share: float) -> Rows:
    """Return the documents that hold more than this share of an item's runs, sorted, with the sets by their bits."""
    _, _, shares = overlaps.pairs(hits)
    chosen = np.flatnonzero(shares > share)
    documents, which = np.unique(overlaps.pair_documents[chosen], return_inverse=True)
    found = np.zeros(len(documents), CONTAMINATED)
    found["document"] = documents
    bits = np.zeros(len(documents), np.uint64)
    np.bitwise_or.at(bits, which, np.uint64(1) << sets[overlaps.pair_items[chosen]].astype(np.uint64))
    highest = np.zeros(len(documents))
    np.maximum.at(highest, which, shares[chosen])
    found["sets"], found["share"] = bits, highest
    return found


def _of_set(verdicts: Verdicts, of_set: Any, share: float) -> dict[str, Any]:
    """Return how many items of a set each definition calls contaminated."""
    checked = verdicts.checkable & of_set

    def count(those: Any) -> int:
        return int((those & checked).sum())

    longest = verdicts.longest[checked]
    return {
        "items": int(of_set.sum()), "not_checkable": int((of_set & ~verdicts.checkable).sum()),
        "contaminated": {
            "gpt_3": count(verdicts.any_run), "one_document": count(verdicts.share > share),
            "palm": count(verdicts.palm >= PALM_SHARE), "llama_2_dirty": count(verdicts.llama_2 >= DIRTY),
            "llama_2_not_clean": count(verdicts.llama_2 >= NOT_CLEAN),
        },
        "llama_3": {f"{limit:g}": count(verdicts.llama_3 > limit) for limit in CURVE},
        "longest_words": int(longest.max()) if len(longest) else 0,
    }  # fmt: skip


def decontamination_record(config: DecontaminateConfig, verdicts: Path) -> dict[str, Any]:
    """Return what the manifest says of evaluation sets, by the folder of the verdicts."""
    (counts,), files = counts_of(verdicts), set_records(config)
    return {
        "words": config.words, "share": config.share, "ignore_above": config.ignore_above, "fields": config.fields,
        "action": config.action.value, "documents": counts["documents"], "boilerplate_runs": counts["boilerplate"],
        "sets": {name: {"sha256": files[name]["sha256"], **each} for name, each in counts["sets"].items()},
    }  # fmt: skip
