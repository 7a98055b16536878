"""Slices of rows: masks, targets and losses are those of whole rows, on two and on four processes."""

import pytest
import torch
from subjects import subject
from torch.nn.attention.flex_attention import create_mask
from torch.testing import assert_close

from pretrain.data.collate import IGNORE
from pretrain.models.masks import BLOCK, build_mask, build_slice_block_mask, build_slice_mask
from pretrain.objectives.batch import Batch
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.context_parallel import RowSplit
from pretrain.parallel.parity import Case, TrainingTask, difference, train_cases

ALONE = Case()
TWO = ParallelConfig(context_parallel=2)
FAMILIES = ["gpt", "llama", "modern_bert", "hybrid"]  # causal, with a z-loss, masked, both
CAUSAL_ROWS = torch.tensor([True, False, True])


def split(rank: int, size: int) -> RowSplit:
    """Return a part of a row whose processes are never asked."""
    return RowSplit(None, rank, size)  # type: ignore[arg-type]


def documents(length: int) -> torch.Tensor:
    """Return three rows: few documents and a padded end, many documents, only one."""
    positions = torch.arange(length)
    padded = torch.where(positions < length - 40, (positions >= 50).int() + (positions >= 260).int(), -1)
    return torch.stack([padded, positions // 37, torch.zeros_like(positions)]).int()


def test_the_slices_are_the_row_and_each_attends_to_equally_many_pairs():
    slices = [split(rank, 4).positions(64, torch.device("cpu")) for rank in range(4)]
    assert torch.cat(slices).sort().values.tolist() == list(range(64))
    assert len({int((each + 1).sum()) for each in slices}) == 1


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("causal", [True, False, None])
@pytest.mark.parametrize("packed", [True, False])
def test_the_masks_of_a_slice_are_rows_of_the_whole_mask(causal: bool | None, window: int | None, packed: bool):
    rule = CAUSAL_ROWS if causal is None else causal
    length, numbers = 4 * BLOCK, documents(4 * BLOCK)
    whole = build_mask(rule, window, numbers if packed else torch.zeros_like(numbers), length, numbers.device).allowed
    assert whole is not None
    for rank in range(2):
        queries = split(rank, 2).positions(length, numbers.device)
        mask = build_slice_mask(rule, window, numbers if packed else None, queries, length)
        if mask.allowed is None:
            assert not mask.causal
            assert whole.all()
        else:
            assert torch.equal(mask.allowed.expand(3, -1, -1, -1), whole[:, :, queries])
        blocks = build_slice_block_mask(rule, window, numbers if packed else torch.zeros_like(numbers), queries)
        inside = create_mask(blocks.mask_mod, 3, 1, len(queries), length, "cpu")
        assert torch.equal(inside, whole[:, :, queries])
        pairs = whole[:, 0, queries].unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).transpose(2, 3).flatten(3)
        assert torch.equal(blocks.to_dense()[:, 0].bool(), pairs.any(-1))


@pytest.mark.parametrize("family", ["gpt", "bert", "hybrid", "diffusion"])
def test_every_target_is_on_one_process_with_its_weight(family: str):
    batch = subject(family).batch(0)
    parts = [split(rank, 4).part_of(batch)[0] for rank in range(4)]
    every = [triple for part in parts for triple in targets_of(part)]
    assert sorted(every) == sorted(targets_of(batch))
    assert all(part.tokens.shape[1] == batch.tokens.shape[1] // 4 for part in parts)


def targets_of(batch: Batch) -> list[tuple[int, int, int, float]]:
    """Return row, token at the position, target and weight of every target."""
    found = []
    for row, slot in (batch.targets != IGNORE).nonzero().tolist():
        place = slot if batch.target_positions is None else int(batch.target_positions[row, slot])
        weight = 1.0 if batch.weights is None else float(batch.weights[row, slot])
        tokens = batch.tokens.reshape(len(batch.targets), -1)
        found.append((row, int(tokens[row, place]), int(batch.targets[row, slot]), weight))
    return found


def test_a_slice_without_targets_has_none():
    batch = subject("bert").batch(0)
    empty = Batch(**{**vars(batch), "targets": torch.full_like(batch.targets, IGNORE)})
    part, _ = split(0, 2).part_of(empty)
    assert (part.targets == IGNORE).all()
    assert_close(part.target_positions, torch.zeros_like(part.targets))


def compare(cases: dict[tuple[str, str], tuple[TrainingTask, Case]]) -> None:
    """Train the cases and hold each to the one of its family on one process."""
    found = dict(zip(cases, train_cases(list(cases.values()), 6), strict=True))
    for (family, name), trained in found.items():
        apart = difference(found[family, "alone"], trained)
        print(f"{family:12} {name:22} {apart.loss:.1e} {apart.norm:.1e} {apart.weights:.1e}")
        assert apart.loss <= 1e-5, (family, name)
        assert apart.norm <= 1e-4, (family, name)
        assert apart.weights <= 1e-4, (family, name)
        assert min(trained.losses[1:]) < trained.losses[0] - 0.01, f"{family}, {name} learned nothing"


def table(families: list[str], layouts: dict[str, Case]) -> dict[tuple[str, str], tuple[TrainingTask, Case]]:
    layouts = {"alone": ALONE} | layouts
    return {(family, name): (subject(family), case) for family in families for name, case in layouts.items()}


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
def test_two_processes_that_split_rows_train_every_objective_as_one():
    cases = table(FAMILIES, {"fsdp": Case(2, TWO)}) | table(["gpt"], {"ddp": Case(2, TWO, ddp=True)})
    checkpointed = ParallelConfig(context_parallel=2, activation_checkpointing=True, selective_checkpointing=True)
    cases |= table(["gpt"], {"accumulation": Case(2, TWO, accumulation=2), "checkpointed": Case(2, checkpointed)})
    compare(cases)


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
def test_four_processes_that_split_rows_train_as_one():
    four = {
        "fsdp 2 x context 2": Case(4, TWO),
        "context 4": Case(4, ParallelConfig(context_parallel=4)),
    }
    compare(table(["diffusion"], four))


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
@pytest.mark.long
def test_split_rows_go_with_every_other_layout():
    layouts = {
        "context 4": Case(4, ParallelConfig(context_parallel=4)),
        "ddp 2 x context 2": Case(4, TWO, ddp=True),
        "hsdp 2 x context 2": Case(4, ParallelConfig(context_parallel=2, replicas=2)),
        "context 2 x tensor 2": Case(4, ParallelConfig(context_parallel=2, tensor_parallel=2)),
        "rows split twice": Case(4, ParallelConfig(context_parallel=2, tensor_parallel=2, sequence_parallel=True)),
    }
    compare(table(["llama", "bert", "hybrid"], layouts))
