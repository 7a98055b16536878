"""Duplicates within a curation: the stages that find them, in order, and what they say of each document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.curation.base_corpus import BASE_VERSION, Base, read_base
from pretrain.data.curation.config import CurationConfig
from pretrain.data.curation.contamination.config import Action
from pretrain.data.curation.engine import Stage, Task, counts_of
from pretrain.data.curation.near_duplicates import tasks
from pretrain.data.curation.near_duplicates.buckets import BAND
from pretrain.data.curation.near_duplicates.minhash import index_parameters
from pretrain.data.curation.near_duplicates.paragraphs import PARAGRAPHS_VERSION, repeats_of
from pretrain.data.curation.near_duplicates.shuffle_files import number_of_partitions
from pretrain.data.curation.near_duplicates.stages import decisions_of
from pretrain.data.curation.near_duplicates.verification import VERIFICATION_VERSION
from pretrain.data.curation.rules import EXACT_RULE, GUARD_RULE, NEAR_RULE
from pretrain.data.curation.stages import EXACT_VERSION, duplicates_of, find_exact
from pretrain.data.sources.splits import is_below_one_part

_OF_KEYS = ("words", "bands", "rows", "within")
_USED_BY = {"near": (*_OF_KEYS, "similarity", "verify"), "paragraphs": (*_OF_KEYS, "paragraphs")}  # by stage


@dataclass(frozen=True)
class Corpus:
    """What the stages of duplicates know of the curation that they belong to."""

    config: CurationConfig
    base: Base
    units: int
    documents: int  # usable ones, and those of the base
    partitions: int  # of the keys of equal texts
    c4: Mapping[str, Any]  # by source: how lines are chosen
    languages: Mapping[str, str | None]

    def settings(self) -> dict[str, Any]:
        """Return what the tasks of units and shards need."""
        near = tasks.near_settings(self.config.duplicates)
        bands = self.config.duplicates.bands
        return {
            "near": near, "units": self.units, "base": self.base.record(), "partitions": self.partitions,
            "c4": dict(self.c4), "languages": dict(self.languages),
            "buckets": number_of_partitions(self.documents * bands * BAND.itemsize),
        }  # fmt: skip


class _Stages:
    """Runs stages on the units and on the shards of the base corpus, and adds their folders to `known`, by name."""

    def __init__(self, corpus: Corpus, known: dict[str, str], run: Callable[[Stage], Path]) -> None:
        self.known, self._run = known, run
        self.settings = corpus.settings()
        self.units = corpus.units + len(corpus.base.shards)

    def run(self, name: str, function: Callable[[Task], Any], count: int, version: int, **more: Any) -> Path:
        """Run a stage of so many tasks, with `more` settings; return its folder."""
        used = {"near": {key: self.settings["near"][key] for key in _USED_BY.get(name, _OF_KEYS)}}
        made = Stage(name, function, count, version, self.settings | used | more, dict(self.known))
        self.known[name] = made.folder
        return self._run(made)


def find_duplicates(corpus: Corpus, known: dict[str, str], run: Callable[[Stage], Path]) -> None:
    """Run the stages that the settings ask for, and add their folders to `known`, by name.

    `known` has those of units, read, measure and decide.
    """
    config, base = corpus.config.duplicates, corpus.base
    if base.shards:
        record = base.record() | {"first": corpus.units, "partitions": corpus.partitions, "bands": base.bands}
        known["base"] = (older := Stage("base", read_base, len(base.shards), BASE_VERSION, record, {})).folder
        run(older)
    if config.exact:
        inputs = {name: folder for name, folder in known.items() if name in ("decide", "base")}
        equal = Stage("exact", find_exact, corpus.partitions, EXACT_VERSION, {}, inputs)
        known["exact"] = equal.folder
        run(equal)
    if config.near:
        stages = _Stages(corpus, known, run)
        stage, units, buckets = stages.run, stages.units, stages.settings["buckets"]
        stage("bands", tasks.shuffle_bands, units, tasks.BANDS_VERSION)
        stage("buckets", tasks.find_buckets, buckets, tasks.BANDS_VERSION)
        ranges = counts_of(stage("components", tasks.find_components, 1, tasks.BANDS_VERSION))[0]["ranges"]
        if ranges:
            stage("members", tasks.shuffle_members, units, tasks.MEMBERS_VERSION)
            stage("routed", tasks.route_buckets, buckets, tasks.MEMBERS_VERSION)
            stage("near", tasks.decide_range, ranges, VERIFICATION_VERSION)
            validation = corpus.config.validation
            if base.shards and validation.guard and validation.fraction:  # else a cluster is in one split anyway
                version = tasks.GUARD_VERSION + is_below_one_part(validation.fraction)  # of those alone
                stage("guard", tasks.guard_range, ranges, version, fraction=validation.fraction)


def find_repeats(corpus: Corpus, known: dict[str, str], run: Callable[[Stage], Path]) -> None:
    """Run the stages of repeated paragraphs if the settings ask for it, and add their folders to `known`.

    `known` has all stages that remove documents: a paragraph stays where it stands first in those that are kept.
    """
    if corpus.config.duplicates.paragraphs is not None:
        stages = _Stages(corpus, known, run)
        stage, units, buckets = stages.run, stages.units, stages.settings["buckets"]
        drops = "verdicts" in known and corpus.config.decontaminate.action is Action.drop
        more = {"drops": True} if drops else {}
        stage("paragraphs", tasks.shuffle_paragraphs, units, PARAGRAPHS_VERSION, **more)
        stage("repeats", tasks.cut_repeats, buckets, PARAGRAPHS_VERSION)


def signatures_stage(corpus_c4: Mapping[str, Any], config: CurationConfig, count: int, known: dict[str, str]) -> Stage:
    """Return the stage that computes the band keys of all usable texts: it depends on no threshold."""
    parameters = index_parameters(config.duplicates)
    settings = {**{name: value for name, value in parameters.items() if name != "within"}, "c4": dict(corpus_c4)}
    inputs = {name: known[name] for name in ("units", "read")}
    return Stage("signatures", tasks.sign_documents, count, tasks.SIGNATURES_VERSION, settings, inputs)


@dataclass(frozen=True)
class Fate:
    """What becomes of a document as a duplicate."""

    removed_by: str | None = None
    twin: str | None = None  # id of the kept document that it is a duplicate of
    similarity: float | None = None
    cluster: str | None = None  # id of the cluster's first document; None: it is alone
    copies: int = 1  # documents that it stands for, if it is kept
    unverified: bool = False
    paragraphs: tuple[int, ...] = ()  # to be cut


class Fates:
    """What the stages of duplicates say of the documents of one unit."""

    def __init__(self, task: Task) -> None:
        exact = duplicates_of(task.optional_inputs("exact", "duplicates.rows"), task.index)
        self._exact = {int(row["document"]): row for row in exact}
        start = task.index << 32
        paths = task.optional_inputs("near", "near.rows")
        own = decisions_of(paths, np.array([start, start + (1 << 32) - 1], np.uint64), between=True)
        others = decisions_of(paths, np.unique(exact["kept"]))
        self._near = {int(row["document"]): row for rows in (own, others) for row in rows}
        self._gone = set(tasks.gone_documents(task.optional_inputs("guard", "gone.rows"), task.index).tolist())
        repeats = task.optional_inputs("repeats", "repeats.rows")
        self._repeats = repeats_of(repeats, task.index) if repeats else {}

    def of(self, document: int) -> Fate:
        """Return what becomes of the document with this number, that no rule removed."""
        exact, near = self._exact.get(document), self._near.get(document)
        if exact is not None and exact["kept"] != document:
            return self._copy(exact)
        copies = 1 if exact is None else int(exact["copies"])
        if near is None:
            return Fate(copies=copies, paragraphs=self._cuts(document))
        cluster = identity(near["cluster"])
        if not near["kept"]:
            value = float(near["similarity"])
            return Fate(NEAR_RULE, identity(near["twin_id"]), None if np.isnan(value) else value, cluster)
        if document in self._gone:
            return Fate(GUARD_RULE, cluster=cluster)
        size, unverified = int(near["cluster_size"]), bool(near["unverified"])
        return Fate(None, None, None, cluster, size, unverified, self._cuts(document))

    def _copy(self, exact: Any) -> Fate:
        """Return the fate of a copy; if the text that stays of the copies is a near-duplicate, so is the copy."""
        near = self._near.get(int(exact["kept"]))
        if near is None or near["kept"]:
            cluster = identity(exact["kept_id"] if near is None else near["cluster"])
            return Fate(EXACT_RULE, identity(exact["kept_id"]), 1.0, cluster)
        value = float(near["similarity"])
        similarity = None if np.isnan(value) else value
        return Fate(EXACT_RULE, identity(near["twin_id"]), similarity, identity(near["cluster"]))

    def _cuts(self, document: int) -> tuple[int, ...]:
        return tuple(int(index) for index in self._repeats.get(document, ()))


def identity(halves: Any) -> str:
    """Return an id of two numbers as 32 hexadecimal digits."""
    upper, lower = (int(half) for half in halves)
    return f"{upper:016x}{lower:016x}"
