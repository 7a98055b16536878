"""Twenty steps give equal results on any processes: every family, every strategy, every pair."""

import os
import shutil
import signal
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from subjects import subject

from pretrain.models.choices import Parametrization
from pretrain.optim.config import AdamWConfig, MuonConfig, StableAdamWConfig
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.parity import Case, ParityResult, TrainingTask, difference, train_cases

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_ranks")]

STEPS = 20
ALONE = Case()
TENSOR = ParallelConfig(tensor_parallel=2)
ROWS = ParallelConfig(tensor_parallel=2, sequence_parallel=True)
SHARED = {
    "accumulation 4": Case(accumulation=4),
    "ddp x 2": Case(2, ddp=True),
    "fsdp x 2": Case(2),
    "tensor x 2": Case(2, TENSOR),
    "tensor x 2, rows split": Case(2, ROWS),
    "fsdp 2 x tensor 2": Case(4, ROWS),
    "hsdp 2 x 2": Case(4, ParallelConfig(replicas=2)),
    "context x 2": Case(2, ParallelConfig(context_parallel=2)),
}
MUP = {"parametrization": Parametrization.mup, "base_width": 16, "base_head_dim": 4}
CHECKPOINTED = {"activation_checkpointing": True}
OPTIONS = {
    "fsdp, accumulation 2, reduced once": Case(2, ParallelConfig(no_sync_accumulation=True), accumulation=2),
    "fsdp, weights kept, two blocks ahead": Case(2, ParallelConfig(reshard_after_forward=False, prefetch_blocks=2)),
    "fsdp, checkpointed": Case(2, ParallelConfig(**CHECKPOINTED)),
    "tensor, checkpointed": Case(2, ParallelConfig(tensor_parallel=2, **CHECKPOINTED)),
    "every second block checkpointed": Case(1, ParallelConfig(**CHECKPOINTED, checkpoint_every_blocks=2)),
    "selectively checkpointed": Case(2, ParallelConfig(**CHECKPOINTED, selective_checkpointing=True)),
}


WAITS = """
import os, sys, time

if __name__ == "__mp_main__":  # a process that begins
    print(os.getpid(), flush=True)
    time.sleep(300)
from pretrain.stop_signals import AskedToStop, listen
from pretrain.optim.config import AdamWConfig
from pretrain.parallel.parity import Case, TrainingTask, train_cases

if __name__ == "__main__":
    listen()
    try:
        train_cases([(TrainingTask(None, None, None, AdamWConfig()), Case())], 1)
    except AskedToStop as asked:
        sys.exit(asked.exit_code)
"""


def table(cases: dict[str, tuple[TrainingTask, Case]], steps: int = STEPS) -> dict[str, ParityResult]:
    return dict(zip(cases, train_cases(list(cases.values()), steps), strict=True))


@pytest.mark.parametrize(
    "families",
    [pytest.param(["gpt", "bert"], id="gpt, bert"), pytest.param(["llama"], marks=pytest.mark.long, id="llama")],
)
def test_every_strategy_trains_every_family_alike(families: list[str]):
    cases = {f"{family}, alone": (subject(family), ALONE) for family in families}
    cases |= {f"{family}, {name}": (subject(family), case) for family in families for name, case in SHARED.items()}
    others = {}
    if "gpt" in families:
        cases |= {f"gpt, {name}": (subject("gpt"), case) for name, case in OPTIONS.items()}
        others = {
            "gpt untied": subject("gpt", tie_embeddings=False),
            "modern_bert": subject("modern_bert"),
            "gemma": subject("gemma"),
            "gated": subject("gated", **MUP),
            "hybrid": subject("hybrid"),
            "diffusion": subject("diffusion"),
        }
    for name, one in others.items():
        cases |= {f"{name}, alone": (one, ALONE), f"{name}, rows split": (one, Case(2, ROWS))}
    if "gated" in others:  # its blocks read tokens and embeddings, besides the residual stream
        cases |= {f"gated, {name}": (others["gated"], SHARED[name]) for name in ("ddp x 2", "fsdp x 2")}
        cases["gated, checkpointed"] = (others["gated"], Case(2, ParallelConfig(**CHECKPOINTED)))
    if "diffusion" in others:  # its targets have weights, and micro-batches unequal sums of them
        names = ("accumulation 4", "ddp x 2", "fsdp x 2")
        cases |= {f"diffusion, {name}": (others["diffusion"], SHARED[name]) for name in names}
    found = table(cases)
    for one, other in combinations(cases, 2):
        if one.partition(",")[0] == other.partition(",")[0]:
            apart = difference(found[one], found[other])
            print(f"{one:45} {other:45} {apart.loss:.1e} {apart.norm:.1e} {apart.weights:.1e}")
            assert apart.loss <= 1e-5, (one, other)
            assert apart.norm <= 1e-4, (one, other)
            assert apart.weights <= 1e-4, (one, other)
    for name, trained in found.items():
        assert min(trained.losses[1:]) < trained.losses[0] - 0.01, f"{name} learned nothing"


@pytest.mark.long
def test_muon_trains_alike_on_split_matrices():
    one = subject("llama", MuonConfig(learning_rate=3e-3), **MUP)
    names = ["ddp x 2", "fsdp x 2", "tensor x 2", "fsdp 2 x tensor 2", "hsdp 2 x 2"]
    found = table({"alone": (one, ALONE)} | {name: (one, SHARED[name]) for name in names})
    for name in names:
        assert difference(found["alone"], found[name]).loss <= 2e-4


@pytest.mark.long
def test_stable_adamw_trains_alike_on_matrices_that_are_split_twice():
    """Clipped by the root mean square of whole matrices: at beta2=0.5 most updates are."""
    one = subject("llama", StableAdamWConfig(learning_rate=0.01, beta2=0.5))
    names = ["fsdp x 2", "fsdp 2 x tensor 2", "hsdp 2 x 2"]
    found = table({"alone": (one, ALONE)} | {name: (one, SHARED[name]) for name in names}, steps=10)
    for name in names:
        assert difference(found["alone"], found[name]).loss <= 1e-4, name


@pytest.mark.long
@pytest.mark.parametrize("family", ["gpt", "llama", "bert", "hybrid", "diffusion"])
def test_muon_trains_every_objective_alike_on_four_processes(family: str):
    one = subject(family, MuonConfig(learning_rate=3e-3, row_beta2=0.9 if family == "hybrid" else 0.0))
    layouts = {
        "ddp x 4": Case(4, ddp=True),
        "fsdp x 4": Case(4),
        "fsdp 2 x tensor 2": SHARED["fsdp 2 x tensor 2"],
        "hsdp 2 x 2": SHARED["hsdp 2 x 2"],
        "context 4": Case(4, ParallelConfig(context_parallel=4)),
        "ddp 2 x context 2": Case(4, ParallelConfig(context_parallel=2), ddp=True),
        "hsdp 2 x context 2": Case(4, ParallelConfig(context_parallel=2, replicas=2)),
        "context 2 x tensor 2": Case(4, ParallelConfig(context_parallel=2, tensor_parallel=2)),
        "fsdp x 4, accumulation 2": Case(4, ParallelConfig(no_sync_accumulation=True), accumulation=2),
    }
    found = table({"alone": (one, ALONE)} | {name: (one, case) for name, case in layouts.items()}, steps=10)
    for name in layouts:
        assert difference(found["alone"], found[name]).loss <= 2e-4, name
    assert min(found["alone"].losses) < found["alone"].losses[0] - 0.01, f"{family} learned nothing"


@pytest.mark.long
@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_bf16_trains_alike_within_its_rounding(family: str):
    one = subject(family, AdamWConfig(learning_rate=1e-3))
    names = ["fsdp x 2", "tensor x 2, rows split", "context x 2"]
    bf16 = {name: (one, Case(SHARED[name].ranks, SHARED[name].settings, half=torch.bfloat16)) for name in names}
    bf16["context x 2, ddp"] = (one, Case(2, SHARED["context x 2"].settings, ddp=True, half=torch.bfloat16))
    found = table({"alone": (one, Case(half=torch.bfloat16)), "fp32": (one, ALONE)} | bf16, steps=10)
    for name in bf16:
        assert 0 < difference(found["alone"], found[name]).loss <= 5e-4
    assert difference(found["alone"], found["fp32"]).loss > 1e-5, "nothing was computed in bf16"


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor")
def test_compiled_blocks_train_alike():
    one = subject("gpt")
    cases = {
        "fsdp": ParallelConfig(compile=True),
        "tensor": ParallelConfig(tensor_parallel=2, compile=True),
        "context": ParallelConfig(context_parallel=2, compile=True),
    }
    found = table({"alone": (one, ALONE)} | {name: (one, Case(2, settings)) for name, settings in cases.items()})
    for name in cases:
        assert difference(found["alone"], found[name]).loss <= 1e-5


def test_ctrl_c_ends_the_processes_without_a_word_of_theirs(tmp_path: Path):
    script = tmp_path / "waits.py"
    script.write_text(WAITS)
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "")
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
