"""Curation from start to end: units, stages, and the corpus with its manifest last.

Given again, the command goes on where it was: what is done is found by its key. Equal inputs and settings give equal
bytes, whatever the number of processes, the order of tasks, and how often it was killed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import xxhash

from pretrain.data.curation.base_corpus import index_record, open_base
from pretrain.data.curation.clusters.config import EngineKind
from pretrain.data.curation.config import CorpusSource, CurationConfig, FilesSource, HuggingFaceSource
from pretrain.data.curation.contamination.config import Action
from pretrain.data.curation.contamination.eval_sets import set_name
from pretrain.data.curation.contamination.tasks import decontamination_record, decontamination_stages
from pretrain.data.curation.duplicates import Corpus, find_duplicates, find_repeats, signatures_stage
from pretrain.data.curation.engine import (
    Engine,
    Stage,
    Workers,
    counts_of,
    done_record,
    file_of,
    link,
    number_of_tasks,
    storage_errors,
)
from pretrain.data.curation.forget import finish_forgetting
from pretrain.data.curation.growth import append, appended_before, check_has_not_grown
from pretrain.data.curation.language_model import LANGUAGE_VERSION, model_file, model_record
from pretrain.data.curation.languages import SourceRules, check_thresholds, source_rules
from pretrain.data.curation.manifest import (
    DOMAINS,
    ITEMS,
    MANIFEST,
    add_all,
    by_source,
    check_identity,
    earlier_manifest,
    made_with,
    manifest_bytes,
    report_replaced,
)
from pretrain.data.curation.near_duplicates.shuffle_files import number_of_partitions
from pretrain.data.curation.output_folder import locked, sweep
from pretrain.data.curation.personal_data import NOT_COVERED
from pretrain.data.curation.quality import MODEL
from pretrain.data.curation.rules import (
    DUPLICATE_RULES,
    EXACT_RULE,
    GUARD_RULE,
    LANGUAGE_SCORE,
    NEAR_RULE,
    PARAGRAPHS_RULE,
    PERSONAL_DATA_RULE,
    measuring,
    rule_record,
)
from pretrain.data.curation.score_columns import SCORES
from pretrain.data.curation.scores import Scoring
from pretrain.data.curation.stages import (
    DECIDE_VERSION,
    EXACT,
    MEASURE_VERSION,
    READ_VERSION,
    decide_documents,
    measure_documents,
    read_documents,
)
from pretrain.data.curation.statistics import STATISTICS_VERSION, Measuring
from pretrain.data.curation.tombstones import FORGOTTEN, read_tombstones
from pretrain.data.curation.units import files_stage, read_inventory, write_units
from pretrain.data.curation.verify import STAGES
from pretrain.data.curation.web.reading import library_versions, not_reproducible, trusted_domains, web_settings
from pretrain.data.curation.words import WORDS_VERSION
from pretrain.data.curation.writing import WRITE_VERSION, merge_attribution, merge_samples, write_unit
from pretrain.data.progress import Progress
from pretrain.data.sources.source import counted
from pretrain.errors import CheckpointError, DataError, printable
from pretrain.files.atomic_files import sync_to_disk, write_atomically
from pretrain.files.untrusted_files import read_json

Report = Callable[[str], object]


def curate(config: CurationConfig, report: Report = print) -> dict[str, Any]:
    """Write the corpus that the settings describe into `config.output`; return its manifest.

    Raises DataError for input that cannot be read, has changed since an earlier start, or of which nothing is left;
    CheckpointError if the output cannot be written or another process writes it.
    """
    output = Path(config.output).expanduser()
    with locked(output), engine_of(config) as engine:
        sweep(output)
        finish_forgetting(output)
        check_has_not_grown(output)
        if not config.append:
            before, written = earlier_manifest(output), _Curation(config, output, engine, report).run()
            report_replaced(before, written, report)
            return written
        base = Path(str(config.base)).expanduser()
        manifest = appended_before(base, output)
        if manifest is None:
            manifest = _Curation(config, output, engine, report).run()
            documents = append(base, output)["documents"]
            report(f"base={printable(str(base))} has grown to {documents:,} documents")
        return manifest


def engine_of(config: CurationConfig) -> AbstractContextManager[Engine]:
    """Return what runs the tasks. Raises ConfigError for an engine whose package is missing."""
    cores = config.workers or len(os.sched_getaffinity(0))
    if config.engine.kind is EngineKind.slurm:
        from pretrain.data.curation.clusters.slurm import SlurmArrays

        return SlurmArrays(config.engine)
    if config.engine.kind is EngineKind.ray:
        from pretrain.data.curation.clusters.ray import RayTasks

        return RayTasks(config.engine, cores)
    return Workers(cores)


class _Curation:
    """One curation under way."""

    def __init__(self, config: CurationConfig, output: Path, engine: Engine, report: Report) -> None:
        self.config, self.output, self.work, self.engine = config, output, output / "work", engine
        self.base = open_base(config.base, output, config.duplicates)
        self.sources: dict[str, CorpusSource] = config.sources
        check_thresholds(config.language.thresholds)
        self.rules: dict[str, SourceRules] = {}
        self.measured: dict[str, Measuring] = {}
        for name, source in self.sources.items():
            self.rules[name] = source_rules(config.rules_of(name), name, source.language, config.language)
            self.measured[name] = measuring(self.rules[name].default.rules, self.rules[name].default.stop_words)
        self.model: dict[str, Any] | None = model_record(config.language.model) if config.language.detect else None
        self.made = made_with()
        for name, source in self.sources.items():
            if source.reads_pages:
                self.made |= library_versions(f"sources.{name}.kind={source.kind}")
        self.domains = trusted_domains(config.html.license_domains)
        self.timings: dict[str, float] = {}
        self.progress = Progress(report)

    def run(self) -> dict[str, Any]:
        """Run every stage, and write the manifest."""
        files = files_stage(self.sources, self.config.unit_bytes, self.progress.report)
        entries = read_inventory(self.run_stage(files), files.tasks)
        self._check_unchanged(entries)
        with storage_errors(self.work):
            units, count = write_units(self.work, entries, self.config.unit_bytes)
        read = self._read_stage(units, files.folder, count)
        self._check_room(sum(entry["bytes"] for entry in entries))
        counts = counts_of(self.run_stage(read))
        measure = self._measure_stage(units, read.folder, count)
        self.run_stage(measure)
        known = {"units": units, "read": read.folder, "measure": measure.folder}
        scoring = self._score(known, count)
        documents = self.base.documents + sum(each["usable"] for each in counts)
        decide = self._decide_stage(known, count, documents)
        if self.config.duplicates.near:
            signatures = signatures_stage(self._c4(), self.config, count, known)
            self.run_stage(signatures)
            known["signatures"] = signatures.folder
        decided = counts_of(self.run_stage(decide))
        known["decide"] = decide.folder
        partitions = decide.settings["partitions"]
        c4, languages = self._c4(), {name: source.language for name, source in self.sources.items()}
        corpus = Corpus(self.config, self.base, count, documents, partitions, c4, languages)
        find_duplicates(corpus, known, self.run_stage)
        for stage in decontamination_stages(self.config.decontaminate, known, c4, count):
            self.run_stage(stage)
        find_repeats(corpus, known, self.run_stage)
        write = self._write_stage(known, count)
        folder = self.run_stage(write)
        contents = self._contents(entries, by_source(counts), by_source(decided), counts_of(folder))
        contents |= scoring.records(self.work)
        if "verdicts" in known:
            contents["decontamination"] = decontamination_record(
                self.config.decontaminate, self.work / known["verdicts"]
            )
        return self._finish(folder, contents, known)

    def run_stage(self, stage: Stage) -> Path:
        """Run a stage and report how far it is; return its folder."""
        started = time.monotonic()

        def report(done: int, tasks: int) -> None:
            self.progress.report_waiting(f"{stage.name}: {done:,} of {tasks:,} tasks")

        folder = self.engine.run_stage(self.work, stage, report)
        self.timings[stage.name] = round(time.monotonic() - started, 3)
        return folder

    def _read_stage(self, units: str, files: str, count: int) -> Stage:
        readings = {}
        for name, source in self.sources.items():
            separator = source.separator if isinstance(source, FilesSource) else None
            hub = {}
            if isinstance(source, HuggingFaceSource):
                hub = {key: getattr(source, key) for key in ("path", "subset", "split", "revision", "text_column")}
            readings[name] = {
                "kind": source.kind, "license": source.license, "columns": source.columns(), "separator": separator,
                "hugging_face": hub, "web": web_settings(source, self.config.html, self.domains),
            }  # fmt: skip
        settings = {"sources": readings, "made": self.made}
        inputs = {"units": units, "files": files} | self._forgotten()
        return Stage("read", read_documents, count, READ_VERSION, settings, inputs)

    def _forgotten(self) -> dict[str, str]:
        """Keep the list of what is to be left out in the output folder, and as an input of stages if there is any."""
        others = [*filter(None, [self.config.base]), *self.config.forgotten]
        found = read_tombstones([self.output, *(Path(path).expanduser() for path in others)])
        if not found:
            return {}
        folder = self.work / f"forgotten-{xxhash.xxh3_128_hexdigest(found.content())[:20]}"
        with storage_errors(self.output):
            found.write(self.output)
            folder.mkdir(exist_ok=True)
            write_atomically(file_of(folder, 0, FORGOTTEN), found.content())
        return {"forgotten": folder.name}

    def _measure_stage(self, units: str, read: str, count: int) -> Stage:
        how = {}
        for name, measured in self.measured.items():
            c4 = None if measured.c4 is None else asdict(measured.c4)
            of_language = {each: sorted(own.stop_words) for each, own in self.rules[name].by_language.items()}
            how[name] = {
                "groups": list(measured.groups), "stop_words": sorted(measured.stop_words), "c4": c4,
                "stop_words_of": of_language, "detect": self._detects(name), "counted": asdict(measured.counted),
            }  # fmt: skip
        settings: dict[str, Any] = {
            "sources": how,
            "versions": [STATISTICS_VERSION, WORDS_VERSION, LANGUAGE_VERSION],
            "model": None,
        }
        if self.model is not None:
            path = str(model_file(self.config.language.model))
            settings["model"] = {"path": path, "characters": self.config.language.characters, **self.model}
        return Stage("measure", measure_documents, count, MEASURE_VERSION, settings, {"units": units, "read": read})

    def _detects(self, source: str) -> bool:
        return self.model is not None and self.sources[source].language is None

    def _score(self, known: dict[str, str], count: int) -> Scoring:
        """Score the texts where that is asked for, and find the threshold of the best."""
        scoring = Scoring(self.config.quality, self.config.toxicity, known, count)
        for stage in scoring.stages:
            self.run_stage(stage)
        thresholds = scoring.thresholds(self.work)
        for name, source in self.sources.items():
            if source.rules is None and thresholds:  # a source with rules of its own has its own
                self.rules[name] = self.rules[name].with_thresholds(**thresholds)
        return scoring

    def _decide_stage(self, known: dict[str, str], count: int, documents: int) -> Stage:
        licenses, keep = self.config.licenses, self.config.duplicates.keep
        settings = {
            "sources": {
                name: self.rules[name].record() | {"priority": source.priority} for name, source in self.sources.items()
            },
            "licenses": _plain(asdict(licenses)), "keep": keep.value,
            "partitions": number_of_partitions(documents * EXACT.itemsize),
        }  # fmt: skip
        return Stage("decide", decide_documents, count, DECIDE_VERSION, settings, dict(known))

    def _c4(self) -> dict[str, Any]:
        """Return by source how the lines of its texts are chosen; None: all."""
        return {name: None if how.c4 is None else asdict(how.c4) for name, how in self.measured.items()}

    def _write_stage(self, known: dict[str, str], count: int) -> Stage:
        how = {}
        for name, source in self.sources.items():
            measured = self.measured[name]
            how[name] = {
                "language": source.language, "c4": None if measured.c4 is None else asdict(measured.c4),
                "measured": [
                    *([LANGUAGE_SCORE] if self._detects(name) else []), *measured.names(),
                    *(column for stage, column in SCORES.items() if stage in known),
                ],
                "values": {rule.name: rule.value for rule in self.rules[name].lists()[""]},
            }  # fmt: skip
        index = index_record(self.config.duplicates)
        settings = {"sources": how, "samples": self.config.samples_per_rule, "index": index}
        settings["personal_data"] = self.config.personal_data.record()
        decontaminate = self.config.decontaminate
        sets = list(map(set_name, decontaminate.sets))
        settings["contamination"] = {"sets": sets, "drop": decontaminate.action is Action.drop}
        return Stage("write", write_unit, count, WRITE_VERSION, settings, known)

    def _check_unchanged(self, entries: list[dict[str, Any]]) -> None:
        """Raise DataError if a file has changed since the first start in this output folder."""
        path = self.work / "inputs.json"
        now = {f"{entry['source']}/{entry['file']}": entry["xxh3_128"] for entry in entries}
        before = read_json(path, 1 << 30) if path.exists() else {}
        for name in sorted(before.keys() & now.keys()):
            if before[name] != now[name]:
                raise DataError(
                    f"{printable(name)} has changed since this curation began in {printable(str(self.output))}. "
                    f"Restore the file, or begin anew: delete {printable(str(self.work))}, or choose another output."
                )
        with storage_errors(self.work):
            write_atomically(path, json.dumps(before | now, sort_keys=True).encode())

    def _check_room(self, input_bytes: int) -> None:
        """Raise CheckpointError if the disk has not even room for the texts once."""
        free = shutil.disk_usage(self.work).free
        if free < input_bytes // 2:
            raise CheckpointError(
                f"{self.work} needs about {input_bytes:,} bytes, and {free:,} are free. Free some space, or choose an "
                "output on another disk."
            )

    def _contents(
        self,
        entries: list[dict[str, Any]],
        read: dict[str, Any],
        decided: dict[str, Any],
        written: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """Return the manifest without its shards and fingerprint, after a check that its counts add up."""
        kept = by_source(written)
        sources = {}
        for name, source in sorted(self.sources.items()):
            documents = {
                "read": read[name]["read"], "unusable": read[name]["unusable"],
                "removed": decided[name].get("rules", {}),
                **{rule: kept[name]["duplicates"].get(rule, 0) for rule in DUPLICATE_RULES},
                "kept": kept[name].get("documents", 0),
            }  # fmt: skip
            sources[name] = {
                "license": source.license, "language": source.language, "priority": source.priority,
                "files": [
                    {"path": entry["file"], "bytes": entry["bytes"], "xxh3_128": entry["xxh3_128"]}
                    for entry in entries if entry["source"] == name
                ],
                "documents": documents, "characters": kept[name].get("characters", 0),
            }  # fmt: skip
        check_identity(sources)
        total = add_all({key: value for key, value in each.items() if key != "source"} for each in written)
        if not total.get("documents"):
            raise self._nothing_left(sources)
        domains = sorted(total["domains"].items(), key=lambda item: (-item[1], item[0]))
        return {
            "made": self.made, "settings": self._settings(), "documents": total["documents"],
            "characters": total["characters"], "sources": sources, "licenses": total["licenses"],
            "license_evidence": total["license_evidence"], "languages": total["languages"],
            "reservations": total["reservations"], "domains_top": dict(domains[:DOMAINS]), "dates": total["years"],
            "duplicates": self._duplicates(total), "index": index_record(self.config.duplicates),
            "base": self.base.fingerprint or None,
            "not_reproducible": not_reproducible(add_all(each["documents"]["unusable"] for each in sources.values())),
            "personal_data": self.config.personal_data.record()
            | {"replaced": total.get("personal_data", {}), "not_covered": list(NOT_COVERED)},
        }  # fmt: skip

    def _duplicates(self, total: dict[str, Any]) -> dict[str, Any]:
        """Return what the manifest says of duplicates: documents removed, paragraphs cut, and sizes of clusters."""
        names = (
            EXACT_RULE, NEAR_RULE, GUARD_RULE, PARAGRAPHS_RULE, "unverified_kept", "documents_cut", "paragraphs_cut",
            "characters_cut",
        )  # fmt: skip
        sizes = sorted(total["clusters"].items(), key=lambda item: int(item[0].partition("-")[0]))
        return {name: total["duplicates"].get(name, 0) for name in names} | {"clusters": dict(sizes)}

    def _nothing_left(self, sources: dict[str, Any]) -> DataError:
        counts = add_all(source["documents"] for source in sources.values())
        start, unusable = f"no document is left of {counts['read']:,}: ", counts["unusable"]
        if sum(unusable.values()) == counts["read"]:
            why = f"none can be used: {counted(unusable)}" if unusable else "the files of the sources hold none"
            return DataError(f"{start}{why}. Name files with text: sources.<name>.path=<folder>.")
        removed = counts["removed"] | {"unusable": {"first": sum(unusable.values())}}
        removed |= {rule: {"first": counts[rule]} for rule in DUPLICATE_RULES}
        rule, most = max(removed.items(), key=lambda item: item[1]["first"])
        remedy = "Try other rules, such as rules=none, or licenses=any."
        if self.base.shards and rule in DUPLICATE_RULES:
            remedy = "They are in the base corpus already: nothing is new."
        if rule == PERSONAL_DATA_RULE:
            remedy = "Try personal_data.replacement=placeholder."
        return DataError(f"{start}{rule} removed most of them, {most['first']:,}. {remedy}")

    def _settings(self) -> dict[str, Any]:
        """Return the settings without the folders of this machine."""
        config = self.config
        of_language = {
            name: {each: rule_record(rules) for each, rules in self.rules[name].lists().items() if each}
            for name in sorted(self.rules) if self.rules[name].by_language and config.rules_of(name).by_language
        }  # fmt: skip
        return {
            "rules": {name: rule_record(self.rules[name].lists()[""]) for name in sorted(self.rules)},
            "rules_of_languages": of_language,
            "html": _plain(asdict(config.html) | {"license_domains": self.domains}),
            "language": asdict(config.language) | {"model": self.model},
            "licenses": _plain(asdict(config.licenses)), "duplicates": _plain(asdict(config.duplicates)),
            "validation": asdict(config.validation),
        }  # fmt: skip

    def _finish(self, folder: Path, contents: dict[str, Any], known: dict[str, str]) -> dict[str, Any]:
        """Put the files into the output folder, the manifest last."""
        with storage_errors(self.output):
            (self.output / MANIFEST).unlink(missing_ok=True)
            write_atomically(self.work / STAGES, json.dumps({"read": known["read"], "c4": self._c4()}).encode())
            shards, digest, count = [], xxhash.xxh3_128(), number_of_tasks(folder)
            for name in ("data", "decisions", "index"):
                shutil.rmtree(self.output / name, ignore_errors=True)
                (self.output / name).mkdir()
            for index in range(count):
                record = done_record(folder, index)
                assert record is not None
                link(file_of(folder, index, "decisions.parquet"), self.output / "decisions" / f"{index:05d}.parquet")
                digest.update(file_of(folder, index, "digests").read_bytes())
                if documents := record["counts"].get("documents", 0):
                    name = f"data/{index:05d}.parquet"
                    link(file_of(folder, index, "shard.parquet"), self.output / name)
                    index_name = f"index/{index:05d}.rows"
                    link(file_of(folder, index, "index.rows"), self.output / index_name)
                    sizes = {"documents": documents, "characters": record["counts"]["characters"]}
                    sizes["index"] = {"file": index_name, **record["files"]["index.rows"]}
                    shards.append({"file": name, **record["files"]["shard.parquet"], **sizes})
            merge_samples(folder, self.output, self.config.samples_per_rule)
            (self.output / ITEMS).unlink(missing_ok=True)
            (self.output / MODEL).unlink(missing_ok=True)
            if "classifier" in known:
                link(file_of(self.work / known["classifier"], 0, MODEL), self.output / MODEL)
            if "verdicts" in known:
                link(file_of(self.work / known["verdicts"], 0, "items.parquet"), self.output / ITEMS)
            merge_attribution(folder, self.output)
            write_atomically(self.output / "timings.json", json.dumps(self.timings, indent=1).encode())
            for name in ("data", "decisions", "index"):
                sync_to_disk(self.output / name)
            data = manifest_bytes({"fingerprint": digest.hexdigest(), **contents, "shards": shards})
            write_atomically(self.output / MANIFEST, data)
        manifest: dict[str, Any] = json.loads(data)
        return manifest


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value.value if isinstance(value, Enum) else value for name, value in settings.items()}
