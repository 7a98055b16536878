"""Score BLiMP by paradigm, and a sample of it with transformers: `python benchmarks/minimal_pairs.py MODEL`.

MODEL, a run or a Hugging Face folder, causal or masked, scores every pair of blimp.jsonl.xz as `src/eval.py
task=minimal_pairs` does. Then an evenly spaced sample of pairs is scored in the plainest way with transformers (a run
is exported first): one sentence at a time; for a masked model, one copy per token with that token masked. Both must
prefer the same sentences. The seconds of both are printed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from comparison import Result
from torch import Tensor
from tqdm import tqdm

from pretrain.evaluation.config import Task
from pretrain.evaluation.examples import MinimalPair, read_examples
from pretrain.evaluation.scorer import Progress, Scorer
from pretrain.evaluation.tasks import score_examples
from pretrain.inference.dtype import count_parameters, prepare_for_inference
from pretrain.interop.load import open_model

MEASURES = ("src/pretrain/evaluation", "src/pretrain/models", "src/pretrain/inference")

EXPORT = Path(__file__).parents[1] / "src" / "export.py"


def exported(model: Path, folder: Path) -> Path:
    """Return a Hugging Face folder of the model; a run is exported first."""
    if not (model / "report.json").exists():
        return model
    command = [sys.executable, str(EXPORT), f"checkpoint={model}", f"output={folder / 'exported'}"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return folder / "exported"


def by_transformers(folder: Path, causal: bool, rows: list[Tensor], mask_id: int | None) -> list[float]:
    """Return the log-likelihood of each row of ids, or its pseudo-log-likelihood for a masked model."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    kind = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    with torch.inference_mode():
        for row in tqdm(rows, desc="transformers"):
            if causal:
                log_probs = model(row[None]).logits[0, :-1].double().log_softmax(-1)
                found.append(float(log_probs.gather(1, row[1:, None]).sum()))
                continue
            positions = torch.arange(1, len(row) - 1)
            copies = row.repeat(len(positions), 1)
            copies[torch.arange(len(positions)), positions] = mask_id
            log_probs = model(copies).logits[torch.arange(len(positions)), positions].double().log_softmax(-1)
            found.append(float(log_probs.gather(1, row[positions, None]).sum()))
    return found


def sample(model: Path, scorer: Scorer, pairs: list[MinimalPair]) -> dict[str, Any]:
    """Return the scores of both on the same pairs, and the seconds of each."""
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    started = time.perf_counter()
    ours = [score.log_likelihood for score in scorer.texts(texts)]
    own_seconds = time.perf_counter() - started
    end = [] if scorer.causal else [scorer.tokenizer.eos_id]
    ids = [torch.tensor([scorer.tokenizer.bos_id, *scorer.tokenizer.encode(text), *end]) for text in texts]
    with tempfile.TemporaryDirectory() as temporary:
        folder = exported(model, Path(temporary))
        started = time.perf_counter()
        theirs = by_transformers(folder, scorer.causal, ids, scorer.tokenizer.mask_id)
        their_seconds = time.perf_counter() - started
    right, by_theirs = ([a > b for a, b in zip(all_[::2], all_[1::2], strict=True)] for all_ in (ours, theirs))
    return {
        "pairs": len(pairs),
        "right": sum(right) / len(pairs),
        "right by transformers": sum(by_theirs) / len(pairs),
        "pairs judged otherwise": sum(a != b for a, b in zip(right, by_theirs, strict=True)),
        "largest difference of a log-likelihood": max(abs(a - b) for a, b in zip(ours, theirs, strict=True)),
        "seconds": round(own_seconds, 2),
        "seconds of transformers": round(their_seconds, 2),
    }


def main() -> None:
    """Score, compare, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run or a Hugging Face folder")
    parser.add_argument("--name", help="of the model, for the saved file; default: nothing is saved")
    parser.add_argument("--sample", type=int, default=335, help="pairs that transformers scores too")
    parser.add_argument("--pairs", type=int, default=0, help="of BLiMP to score; 0: all")
    given = parser.parse_args()
    path = Path(os.environ.get("PRETRAIN_ASSETS", "")) / "eval" / "blimp" / "blimp.jsonl.xz"
    if not path.is_file():
        sys.exit(f"there is no BLiMP at {path}: name the folder of the assets by PRETRAIN_ASSETS")
    folder = open_model(given.model)
    model = prepare_for_inference(folder.load(), "cpu", "fp32").eval()  # as eval.py reads it
    scorer = Scorer(model, folder.tokenizer, folder.starts_with_bos, report=Progress("BLiMP"))
    started = time.perf_counter()
    found = score_examples(scorer, read_examples(Task.minimal_pairs, str(path), given.pairs))
    result = Result(f"minimal_pairs_{given.name}", "", {"model": given.name or given.model.name})
    result.command = f"python benchmarks/minimal_pairs.py MODEL --name {given.name}"
    result.figures = {
        "parameters": count_parameters(model),
        "seconds": round(time.perf_counter() - started, 1),
    } | found
    few = read_examples(Task.minimal_pairs, str(path), given.sample).examples
    compared = sample(given.model, scorer, [pair for pair in few if isinstance(pair, MinimalPair)])
    result.figures |= {f"sample/{name}": figure for name, figure in compared.items()}
    result.finish(keep=given.name is not None)


if __name__ == "__main__":
    main()
