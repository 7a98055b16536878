"""Documents of a corpus that curate.py wrote.

One that grows is read shard by shard: shards are only ever added after those there are, so that the documents and
their order do not depend on when they were added.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from pretrain.data.config import CuratedConfig
from pretrain.data.curation.manifest import check_shard, read_manifest, summary
from pretrain.data.sources.source import Document, ResumeToken, Source, printable
from pretrain.errors import ConfigError, DataError

POLL_S = 1.0  # between reads of the manifest while a stream waits for more documents
COLUMNS = ["id", "text", "source", "license", "language", "split_key"]


class Curated(Source):
    """The documents of a corpus in its order; each shard is compared with the manifest before it is read."""

    config: CuratedConfig

    def __init__(self, config: CuratedConfig) -> None:
        super().__init__(config)
        self.folder = Path(config.path).expanduser()
        self.manifest = read_manifest(self.folder)
        self.without_duplicates = not _changed_after_comparison(self.manifest)
        self._check_split()
        self._checked: set[str] = set()
        self._resume_token: ResumeToken | None = None
        self._done = 0  # documents of the shards that were read
        self._shard = 0  # the number of the one that is read
        wanted, known = config.only, self.manifest
        for name, values, there in (
            ("source", wanted.source, known["sources"]), ("license", wanted.license, known["licenses"]),
            ("language", wanted.language, known["languages"]),
        ):  # fmt: skip
            for value in values:
                if value not in there:
                    raise DataError(
                        f"data.only.{name}=[{printable(value)}] is not in data.path={printable(config.path)}. "
                        f"There are: {', '.join(printable(each) for each in sorted(there))}."
                    )

    def _check_split(self) -> None:
        """Raise ConfigError if near-duplicates were kept on one side of another split than this training's."""
        made, share = self.manifest["settings"]["validation"], self.config.validation_fraction
        has_base = self.manifest["base"] or self.manifest.get("grown")
        guarded = has_base and self.manifest["settings"]["duplicates"]["near"] and made["guard"]
        if guarded and share and share != made["fraction"]:
            raise ConfigError(
                f"data.validation_fraction={share:g} is not the validation.fraction={made['fraction']:g} for which "
                f"{self.origin()} was made: near-duplicates of its base could be in training and validation. Try "
                f"data.validation_fraction={made['fraction']:g}, or curate again with validation.fraction={share:g}."
            )

    def origin(self) -> str:
        return f"data.path={printable(self.config.path)}"

    def fingerprint(self) -> str:
        """Return the hash of the corpus's own fingerprint and of the part of it that is read.

        Of a corpus that grows, its first shard stands for all.
        """
        import xxhash

        only = self.config.only
        part = [sorted(only.source), sorted(only.license), sorted(only.language)]
        own = self.manifest["fingerprint"] if not self._grows else ["grows", self.manifest["shards"][0]["sha256"]]
        return xxhash.xxh3_128_hexdigest(json.dumps([own, part]).encode())

    @property
    def _grows(self) -> bool:
        return self.config.growth_timeout_s is not None

    def provenance(self) -> dict[str, Any]:
        only = {name: values for name, values in vars(self.config.only).items() if values}
        found = summary(self.manifest) | ({"only": only} if only else {})
        if self._grows:
            count = min(self._shard + 1, len(self.manifest["shards"]))
            found["shards_read"] = {"count": count, "sha256": _digest(self.manifest, count)}
        return found

    def check_read_before(self, provenance: dict[str, Any]) -> None:
        """Raise DataError unless the corpus begins with the shards that were read when it had this provenance."""
        if not self._grows:
            return
        before = provenance.get("shards_read", {})
        count = before.get("count", 0) if isinstance(before, dict) else 0
        if not count or count > len(self.manifest["shards"]) or before.get("sha256") != _digest(self.manifest, count):
            raise DataError(
                f"{self.origin()} does not begin with the {count:,} shards of it that were read before: it has "
                f"{len(self.manifest['shards']):,}, and shards were deleted or changed. Restore the corpus, or leave "
                "data.growth_timeout_s out to read it as it is now."
            )

    def remark_unread(self, provenance: dict[str, Any], documents: int) -> str | None:
        if not self._grows:
            return None
        shards = self.manifest["shards"]
        ends = accumulate(int(shard["documents"]) for shard in shards)
        read = max(provenance["shards_read"]["count"], sum(end <= documents for end in ends))
        if read == len(shards):
            return None
        count, era_tokens = sum(shard["documents"] for shard in shards[read:]), self.config.era_tokens
        return (
            f"{self.origin()} has grown since its reading ended, when nothing had been added for "
            f"data.growth_timeout_s: {len(shards) - read:,} of its {len(shards):,} shards, {count:,} documents, are "
            "not read, so that runs on this stream can go on. To read all of it in a new run, give the stream another "
            f"name by data.era_tokens={era_tokens + 1}, or type data.mode=prepare data.growth_timeout_s=null"
        )

    def characters(self) -> int:
        """Return the characters of the part of the corpus that is read; at most so many where `only` names several."""
        only, known = self.config.only, self.manifest
        parts = [int(known["characters"])]
        for names, of_name in (
            (only.source, known["sources"]), (only.license, known["licenses"]), (only.language, known["languages"]),
        ):  # fmt: skip
            if names:
                parts.append(sum(int(of_name[name]["characters"]) for name in names))
        return min(parts)

    def share_read(self) -> float | None:
        """Return the fraction of the corpus's documents in the shards that were read, 0 to 1."""
        return min(1.0, self._done / max(1, self.manifest["documents"]))

    def resume_token(self) -> ResumeToken | None:
        """Return the start of the current shard; its position is the shard's number."""
        return self._resume_token

    def read(self, position: Any = None) -> Iterator[Document]:
        shards = self.manifest["shards"]
        self._done = sum(shard["documents"] for shard in shards[: position or 0])
        for number in range(position or 0, len(shards)):
            self._resume_token = ResumeToken(self.kept, dict(self.skipped), number)
            self._shard = number
            yield from self._read_shard(shards[number])
            self._done += shards[number]["documents"]

    def wait_for_more(self, keep_waiting: Callable[[], bool]) -> bool:
        """Return whether there are more shards than were read, False once none came for the time of the setting."""
        if self.config.growth_timeout_s is None:
            return False
        until = time.monotonic() + self.config.growth_timeout_s
        while keep_waiting():
            self._reread()
            if len(self.manifest["shards"]) > self._shard + 1:
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(min(POLL_S, self.config.growth_timeout_s))
        return False

    def _reread(self) -> None:
        """Take the manifest as it is now; DataError unless shards were only added to it."""
        now, known = read_manifest(self.folder), len(self.manifest["shards"])
        if now["fingerprint"] == self.manifest["fingerprint"]:
            return
        if len(now["shards"]) < known or _digest(now, known) != _digest(self.manifest, known):
            raise DataError(
                f"{self.origin()} did not only grow while it was read: of its first {known:,} shards some are gone or "
                "are others. Restore the corpus; documents are only ever added by a curation with append=true."
            )
        self.manifest = now

    def _read_shard(self, shard: dict[str, Any]) -> Iterator[Document]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path, only = self.folder / shard["file"], self.config.only
        if shard["file"] not in self._checked:
            check_shard(path, shard)
            self._checked.add(shard["file"])
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(256, columns=COLUMNS):
                    for row in batch.to_pylist():
                        if (
                            (not only.source or row["source"] in only.source)
                            and (not only.license or row["license"] in only.license)
                            and (not only.language or (row["language"] or "not stated") in only.language)
                        ):
                            yield Document(row["text"], row["id"], split_key=row["split_key"])
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise DataError(
                f"{printable(str(path))} cannot be read: {reason}. Give the command that made the corpus again."
            ) from error

    def check_unchanged(self) -> None:
        """Raise DataError if another corpus has been written into the folder since it was opened."""
        if self._grows:
            self._reread()
            return
        if read_manifest(self.folder)["fingerprint"] != self.manifest["fingerprint"]:
            raise DataError(
                f"{self.origin()} was written anew while it was being prepared, so the result is dropped. Start again."
            )

    def check_as_opened(self) -> None:
        """Raise DataError if a corpus that grows did anything else."""
        if self._grows:
            self._reread()


def _changed_after_comparison(manifest: Mapping[str, Any]) -> bool:
    """Return whether texts lost paragraphs or personal data after they were compared, so that some may be equal now.

    Each still has the split of the text that it was, so that equal ones can be in both splits.
    """
    replaced = manifest.get("personal_data", {}).get("replaced", {})
    return bool(manifest["duplicates"].get("documents_cut") or any(replaced.values()))


def _digest(manifest: Mapping[str, Any], count: int) -> str:
    """Return a hash of the contents of the first `count` shards."""
    names = "".join(str(shard["sha256"]) for shard in manifest["shards"][:count])
    return hashlib.sha256(names.encode()).hexdigest()
