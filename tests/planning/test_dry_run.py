"""The dry run on 1 to 1,024 simulated devices; the estimate is close to it."""

import math
import resource
import time
from collections.abc import Callable

import pytest
import torch
from torch.distributed.tensor.debug import _get_python_sharding_prop_cache_info

from pretrain.models.choices import Norm
from pretrain.optim.skipped_steps import constants
from pretrain.planning.config import PlanConfig
from pretrain.planning.cost import checkpoint_bytes
from pretrain.planning.dry_run import dry_run
from pretrain.planning.estimate import estimate_memory
from pretrain.planning.workload import Workload, workload_of
from pretrain.training.config import Precision

Plan = Callable[..., PlanConfig]
TWO = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
SMALL_GPT = ["model=gpt_small", "model.n_layers=3", "model.context_length=256", "batch_size=4", "micro_batch_size=4"]
FOUR = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=4"]
ROWS_SPLIT = ["parallel.tensor_parallel=2", "parallel.sequence_parallel=true"]
SHAPES = {
    "gpt": [*SMALL_GPT],
    "gpt, large vocabulary": [*SMALL_GPT, "vocab_size=50257"],
    "dropout": [*SMALL_GPT, "model.dropout=0.1"],
    "attention dropout": [*SMALL_GPT, "model.attention_dropout=0.1"],
    "accumulation": [*SMALL_GPT, "micro_batch_size=1", "vocab_size=50257"],
    "checkpointing": [*SMALL_GPT, "parallel.activation_checkpointing=true"],
    "muon": [*SMALL_GPT, "optimizer=muon"],
    "gpt_nano": ["model=gpt_nano"],
    "llama": ["model=llama_nano"],
    "llama untied": ["model=llama_nano", "model.tie_embeddings=false"],
    "soft caps": ["model=llama_nano", "model.attention_softcap=50.0", "model.logit_softcap=30.0"],
    "sandwich": ["model=llama_nano", "model.norm_position=sandwich", "model.norm_unit_offset=true"],
    "gated": [
        "model=llama_nano",
        "model.attention_gate=channel",
        "model.value_embeddings_every=2",
        "model.residual_scalars=true",
    ],
    "bert": ["model=bert_nano"],
    "modernbert": ["model=modernbert_nano"],
    "hybrid": ["model=hybrid_nano"],
    "diffusion": ["model=diffusion_nano"],
    "complementary pairs": ["model=diffusion_nano", "objective.complementary=true"],
    "fsdp": [*SMALL_GPT, *TWO, "micro_batch_size=2", "vocab_size=50257"],
    "hsdp": [*SMALL_GPT, *FOUR, "micro_batch_size=1", "parallel.replicas=2"],
    "tensor": [*SMALL_GPT, *TWO, "vocab_size=50257", "parallel.tensor_parallel=2"],
    "tensor, rows split": [*SMALL_GPT, *FOUR, "micro_batch_size=2", *ROWS_SPLIT],
    "tensor, llama": ["model=llama_nano", *TWO, *ROWS_SPLIT],
    "tensor, gated": [
        "model=llama_nano",
        *TWO,
        *ROWS_SPLIT,
        "model.attention_gate=head",
        "model.value_embeddings_every=1",
        "model.residual_scalars=true",
    ],
    "tensor, bert": ["model=bert_nano", *TWO, *ROWS_SPLIT],
    "tensor, checkpointing": [*SMALL_GPT, *TWO, *ROWS_SPLIT, "parallel.activation_checkpointing=true"],
    "rows in slices": [*SMALL_GPT, *TWO, "parallel.context_parallel=2", "vocab_size=50257"],
    "rows in slices, bert": ["model=bert_nano", *TWO, "parallel.context_parallel=2"],
    "rows in slices, diffusion": ["model=diffusion_nano", *TWO, "parallel.context_parallel=2"],
    "rows in slices, ddp": ["model=llama_nano", *TWO, "trainer=ddp", "parallel.context_parallel=2"],
    "every second block": [
        *SMALL_GPT,
        "parallel.activation_checkpointing=true",
        "parallel.checkpoint_every_blocks=2",
    ],
    "selective": [*SMALL_GPT, "parallel.activation_checkpointing=true", "parallel.selective_checkpointing=true"],
    "fsdp, kept gathered": [*SMALL_GPT, *TWO, "micro_batch_size=2", "parallel.reshard_after_forward=false"],
}
LONG_ROWS = "model.context_length=512"  # in which documents of a CPU attend by themselves, and simulated ones cannot
BILLION = [
    "model=gpt_small", "model.n_layers=24", "model.d_model=2048", "model.n_heads=16", "model.tie_embeddings=false",
    "model.position=rope", "model.context_length=2048", "vocab_size=50304", "trainer=fsdp", "trainer.accelerator=cpu",
    "micro_batch_size=4",
]  # fmt: skip


def work_of(config: PlanConfig, precision: Precision) -> Workload:
    return workload_of(config, config.vocab_size or 2048, precision)


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision", [Precision.fp32, pytest.param(Precision.bf16, marks=pytest.mark.long)], ids=lambda each: each.name
)
@pytest.mark.parametrize("name", SHAPES)
def test_the_estimate_is_near_the_dry_run(plan: Plan, name: str, precision: Precision) -> None:
    """State is exact; peaks lay at 0.94 to 1.19 of the dry run's, with split matmuls from 0.68 on."""
    config = plan(*SHAPES[name])
    work = work_of(config, precision)
    seen, memory = dry_run(config.run_config(), work), estimate_memory(work)
    assert (seen.weights, seen.gradients) == (memory.weights, memory.gradients)
    assert seen.optimizer == pytest.approx(memory.optimizer, rel=1e-4)  # and one number for each parameter's step
    assert (0.65 if work.split > 1 else 0.92) * seen.peak < memory.peak < 1.22 * seen.peak
    if not work.activation_checkpointing:
        assert 0.94 * seen.activations < memory.activations < 1.15 * seen.activations


@pytest.mark.slow
def test_nothing_simulated_is_left_for_a_training_in_the_same_process(plan: Plan) -> None:
    numbers = (1.0, 2.0), torch.float64, torch.device("cpu")
    config = plan(*SHAPES["fsdp"])
    dry_run(config.run_config(), work_of(config, Precision.fp32))
    assert constants.cache_info().currsize == 0
    assert _get_python_sharding_prop_cache_info().currsize == 0
    assert constants(*numbers).tolist() == [1.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "llama", "checkpointing"])
def test_a_residual_stream_in_16_bits_is_counted(plan: Plan, name: str) -> None:
    works = []
    for stream in ("false", "true"):
        config = plan(*SHAPES[name], "trainer.precision=bf16", f"trainer.half_residual_stream={stream}")
        works.append(work_of(config, Precision.bf16))
    seen, memory = dry_run(config.run_config(), works[1]), estimate_memory(works[1])
    assert 0.92 * seen.peak < memory.peak < 1.22 * seen.peak
    assert 0.94 * seen.activations < memory.activations < 1.15 * seen.activations or "checkpointing" in name
    usual = dry_run(config.run_config(), works[0]).activations
    assert seen.activations < (0.9 if works[0].model.norm is Norm.layer else 1.001) * usual  # an RMS norm has a copy
    assert work_of(config, Precision.fp32).stream_bytes == 4  # auto may become it


@pytest.mark.slow
def test_a_residual_stream_in_16_bits_takes_less_of_a_gpu_where_norms_are_compiled(plan: Plan) -> None:
    words = ["model=llama_nano", "trainer.precision=bf16"]
    activations = [
        estimate_memory(workload_of(plan(*words, *more), 2048, Precision.bf16, gpu=True)).activations
        for more in ([], ["trainer.half_residual_stream=true"])
    ]
    assert activations[1] < 0.95 * activations[0]


@pytest.mark.long
@pytest.mark.parametrize("ranks", [64, 1024])
def test_a_billion_parameters_on_many_devices(plan: Plan, ranks: int) -> None:
    """24 layers of 2,048 channels, in seconds and without the memory."""
    config = plan(*BILLION, f"trainer.devices={ranks}", f"batch_size={4 * ranks}")
    work = work_of(config, Precision.bf16)
    started, highest = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = dry_run(config.run_config(), work)
    assert time.process_time() - started < 20
    # growth: earlier tests of this process have a peak of their own; the weights alone would be 5.7 GB
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - highest) * 1024 < 1e9
    held = seen.weights + seen.gradients + seen.optimizer
    assert held == pytest.approx(16 * work.parameters / ranks, rel=0.01)
    assert 1.4e9 < work.parameters < 1.45e9
    assert seen.peak == pytest.approx(estimate_memory(work).peak, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [3, 7, 48])
def test_an_uneven_shard_is_that_of_the_fullest_device(plan: Plan, ranks: int) -> None:
    config = plan("model=gpt_nano", "trainer=fsdp", "trainer.accelerator=cpu", f"trainer.devices={ranks}",
                  f"batch_size={ranks}", "vocab_size=2050", "optimizer=adamw")  # fmt: skip
    work = work_of(config, Precision.fp32)
    seen = dry_run(config.run_config(), work)
    fullest = sum(math.ceil(shape[0] / ranks) * math.prod(shape[1:]) for shape in work.shapes.values())
    assert seen.weights == seen.gradients == 4 * fullest > 4 * work.parameters / ranks
    steps = 4 * len(work.shapes)  # AdamW counts each parameter's steps
    assert seen.optimizer == 8 * fullest + steps


@pytest.mark.slow
def test_muon_on_shards_of_split_matrices_is_simulated(plan: Plan) -> None:
    words = ["trainer=fsdp", "trainer.accelerator=cpu", "batch_size=8", "micro_batch_size=1", "optimizer=muon"]
    mesh = ["trainer.devices=8", "parallel.replicas=2", "parallel.tensor_parallel=2", "optimizer.row_beta2=0.9"]
    config = plan("model=llama_nano", *words, *mesh)
    work = work_of(config, Precision.fp32)
    seen, memory = dry_run(config.run_config(), work), estimate_memory(work)
    assert seen.optimizer == pytest.approx(memory.optimizer, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["optimizer=adamw"], TWO], ids=["one", "sharded"])
def test_an_average_of_the_weights_takes_as_much_as_they(plan: Plan, words: list[str]) -> None:
    without, averaged = (plan("model=gpt_nano", LONG_ROWS, *words, f"ema.decay={decay}") for decay in (0.0, 0.999))
    works = [work_of(config, Precision.fp32) for config in (without, averaged)]
    plain, more = (dry_run(config.run_config(), work) for config, work in zip((without, averaged), works, strict=True))
    assert (plain.average, more.average) == (0, more.weights)
    assert more.peak - plain.peak == more.weights
    estimated = [estimate_memory(work) for work in works]
    assert estimated[1].average == estimated[1].peak - estimated[0].peak == more.weights
    assert checkpoint_bytes(works[1]) - checkpoint_bytes(works[0]) == 4 * works[0].parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "llama untied", "gpt, large vocabulary"])
def test_copies_of_the_weights_in_16_bits_are_counted(plan: Plan, name: str) -> None:
    """They are kept between the steps, and autocast has none to save for the backward pass."""
    configs = [plan(*SHAPES[name], f"parallel.half_weight_copies={copies}") for copies in ("false", "true")]
    works = [work_of(config, Precision.bf16) for config in configs]
    without, seen = (dry_run(config.run_config(), work) for config, work in zip(configs, works, strict=True))
    memory, embedding = estimate_memory(works[1]), works[1].vocab_size * works[1].model.d_model
    assert 0.99 * works[1].parameters < works[1].copied + (0 if works[1].model.tie_embeddings else embedding)
    assert (without.copies, seen.copies) == (0, 2 * works[1].copied) == (0, memory.copies)
    assert without.activations - seen.activations <= seen.copies
    assert seen.peak < without.peak + 2 * embedding
    assert 0.92 * seen.peak < memory.peak < 1.22 * seen.peak
    assert 0.94 * seen.activations < memory.activations < 1.15 * seen.activations
    assert work_of(configs[1], Precision.fp32).copied == 0


@pytest.mark.slow
def test_the_simulated_devices_are_gone_afterwards(plan: Plan) -> None:
    config = plan("model=gpt_nano", *TWO)
    dry_run(config.run_config(), work_of(config, Precision.fp32))
    assert not torch.distributed.is_initialized()


def test_buckets_of_ddp_are_counted(plan: Plan) -> None:
    config = plan("model=gpt_nano", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    memory = estimate_memory(work_of(config, Precision.fp32))
    assert memory.buckets == memory.gradients == memory.weights


@pytest.mark.slow
def test_a_gpu_keeps_less_of_a_norm_and_gathers_ahead(plan: Plan) -> None:
    config = plan("model=llama_nano", *TWO)
    here, there = (estimate_memory(workload_of(config, 2048, Precision.bf16, gpu=gpu)) for gpu in (False, True))
    assert there.activations < here.activations
    assert there.gathered > here.gathered


@pytest.mark.slow
def test_compiled_layers_of_a_gpu_hold_no_mask(plan: Plan) -> None:
    """Whether they will be compiled is not known before a run; a long one is."""
    usual, plain, dropping = (
        workload_of(plan("model=llama_nano", *words), 2048, Precision.bf16, gpu=True)
        for words in ([], ["parallel.compile=false"], ["model.attention_dropout=0.1"])
    )
    assert plain.masked
    assert dropping.masked
    assert not usual.masked
    assert usual.compiled
    assert estimate_memory(plain).activations > estimate_memory(usual).activations
    assert workload_of(plan("model=llama_nano"), 2048, Precision.bf16).masked  # a processor's
