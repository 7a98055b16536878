"""A process of a cluster that runs some tasks of a stage: `python -m ...array_task <folder> <stage> <of> <share>`.

All that it needs to know is in the stage's folder, on storage that the machines share. Its error is a file there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pretrain.data.curation.engine import Counts, Task, done_record, number_of_tasks, run_task
from pretrain.errors import CheckpointError, ConfigError, DataError, PretrainError, RankLostError, printable
from pretrain.files.atomic_files import write_atomically
from pretrain.files.untrusted_files import read_json

_KINDS: dict[str, type[PretrainError]] = {
    kind.__name__: kind for kind in (ConfigError, DataError, CheckpointError, RankLostError)
}
MAX_MESSAGE = 20_000  # characters


def task_function(stage: str) -> Callable[[Task], Counts]:
    """Return the function of a stage by its name; ConfigError for a name that no stage has."""
    from pretrain.data.curation import base_corpus, bits_per_byte, quality, stages, toxicity, units, writing
    from pretrain.data.curation.contamination import tasks as contamination
    from pretrain.data.curation.near_duplicates import tasks as near

    known: dict[str, Callable[[Task], Counts]] = {
        "files": units.inventory, "read": stages.read_documents, "measure": stages.measure_documents,
        "classifier": quality.make_classifier, "quality": quality.score_documents,
        "bits": bits_per_byte.measure_bits, "toxicity": toxicity.score_toxicity,
        "signatures": near.sign_documents, "decide": stages.decide_documents, "base": base_corpus.read_base,
        "exact": stages.find_exact, "bands": near.shuffle_bands, "buckets": near.find_buckets,
        "components": near.find_components, "members": near.shuffle_members, "routed": near.route_buckets,
        "near": near.decide_range, "guard": near.guard_range, "paragraphs": near.shuffle_paragraphs,
        "repeats": near.cut_repeats, "runs": contamination.find_runs, "hits": contamination.find_hits,
        "held": contamination.hits_of_kept, "verdicts": contamination.judge_items, "write": writing.write_unit,
    }  # fmt: skip
    if stage not in known:
        raise ConfigError(f"{printable(stage)} is no stage of a curation. Try one of {', '.join(known)}.")
    return known[stage]


def run_share(folder: Path, stage: str, share: int, of: int) -> None:
    """Run those tasks of a stage that are not done and belong to a share: `share`, `share + of`, and so on."""
    function = task_function(stage)
    for index in range(share, number_of_tasks(folder), of):
        if done_record(folder, index) is None:
            run_task(function, folder, index)


def error_record(error: BaseException) -> dict[str, str]:
    """Return the kind and the message of an error, as plain JSON."""
    text = str(error) if isinstance(error, PretrainError) else f"{type(error).__name__}: {error}"
    return {"kind": type(error).__name__, "message": printable(text)[:MAX_MESSAGE]}


def error_of(record: object) -> PretrainError:
    """Return the error of a record; DataError for one of another kind."""
    found = record if isinstance(record, dict) else {}
    return _KINDS.get(str(found.get("kind")), DataError)(str(found.get("message", "a task failed")))


def read_errors(folder: Path, job: str) -> list[PretrainError]:
    """Return the errors of the tasks of a job, that of the first share first."""
    paths = sorted(folder.glob(f"error-{job}-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
    return [error_of(read_json(path, 1 << 20)) for path in paths]


def main(arguments: list[str]) -> int:
    """Run a share of a stage; return the exit code."""
    folder, stage, share, of = Path(arguments[0]), arguments[1], int(arguments[2]), int(arguments[3])
    try:
        run_share(folder, stage, share, of)
    except Exception as error:
        record = error_record(error)
        job = os.environ.get("SLURM_ARRAY_JOB_ID", "0")
        write_atomically(folder / f"error-{job}-{share}.json", json.dumps(record).encode())
        print(printable(str(record["message"])), file=sys.stderr)
        return error.exit_code if isinstance(error, PretrainError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
