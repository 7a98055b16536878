"""The score on items that do not stand in the training text, beside that on all items.

A curated corpus holds a verdict on each item of the sets that it was compared with; an item is found by a hash of its
fields, so files may be renamed, sorted or cut. Clean means that no run of `decontaminate.words` words of the item is in
the corpus: the definition of GPT-3 (Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.data.config import CuratedConfig, MixtureConfig
from pretrain.data.curation.manifest import ITEMS, read_manifest
from pretrain.errors import DataError, printable
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.examples import ExampleSet
from pretrain.evaluation.scorer import Scorer
from pretrain.evaluation.tasks import score_examples
from pretrain.interop.load import ModelFolder

CLEAN, CONTAMINATED, NOT_CHECKABLE, NOT_COMPARED = "clean", "contaminated", "not_checkable", "not_compared"
_RANK = (NOT_COMPARED, NOT_CHECKABLE, CLEAN, CONTAMINATED)  # of several corpora the last one counts


def verdicts_for(config: EvalConfig, folder: ModelFolder) -> dict[str, str] | None:
    """Return the verdict on each item by its key; None if no corpus with verdicts is known.

    Raises DataError for a corpus of the settings that was compared with no evaluation set.
    """
    if config.contamination is None:
        return None
    if config.contamination != "auto":
        path = Path(config.contamination).expanduser()
        if "decontamination" not in read_manifest(path):
            raise DataError(
                f"contamination={printable(config.contamination)} was compared with no evaluation set. Curate it again "
                "with 'decontaminate.sets=[<file of items>]', or leave contamination out."
            )
        return _verdicts(path)
    found: dict[str, str] = {}
    corpora = _corpora_of_run(folder)
    for path in corpora:
        for key, verdict in _verdicts(path).items():
            found[key] = max(found.get(key, NOT_COMPARED), verdict, key=_RANK.index)
    return found if corpora else None


def _corpora_of_run(folder: ModelFolder) -> list[Path]:
    """Return the curated corpora of a run that are still there as it read them, and were compared with sets."""
    recorded = folder.metadata.get("corpora")
    if folder.run is None or not isinstance(recorded, dict):
        return []
    data = folder.run.data
    sources: Mapping[str, Any] = data.sources if isinstance(data, MixtureConfig) else {"": data}
    paths = []
    for name, source in sources.items():
        fingerprint = recorded.get(name, {}).get("fingerprint")
        if not isinstance(source, CuratedConfig):
            continue
        path = Path(source.path).expanduser()
        try:
            manifest = read_manifest(path)
        except DataError:
            continue
        earlier = [removal["before"] for removal in manifest.get("removals", [])]
        if fingerprint in (manifest["fingerprint"], *earlier) and "decontamination" in manifest:
            paths.append(path)
    return paths


def _verdicts(corpus: Path) -> dict[str, str]:
    path = corpus / ITEMS
    try:
        rows = pq.read_table(path, columns=["key", "checkable", "any_run"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{printable(str(path))} cannot be read: {printable(reason)}. Curate the corpus again."
        ) from None
    return {
        row["key"]: CONTAMINATED if row["any_run"] else CLEAN if row["checkable"] else NOT_CHECKABLE for row in rows
    }


def clean_scores(scorer: Scorer, examples: ExampleSet, verdicts: Mapping[str, str]) -> dict[str, float]:
    """Return how many items have which verdict, and the metrics of the clean ones as `clean/<metric>`.

    Items that are too short to be found are no clean ones.
    """
    of_items = [verdicts.get(key, NOT_COMPARED) for key in examples.keys]
    counts: dict[str, float] = {f"items/{name}": of_items.count(name) for name in reversed(_RANK)}
    clean = [example for example, verdict in zip(examples.examples, of_items, strict=True) if verdict == CLEAN]
    if not clean:
        return counts
    metrics = score_examples(scorer, replace(examples, examples=clean, keys=()))
    return counts | {f"clean/{name}": value for name, value in metrics.items() if "/" not in name}
