"""A step communicates the theoretical minimum."""

import pytest
from collectives import counted

from pretrain.optim.config import MuonConfig
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.parity import Case

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_ranks")]

LAYERS = 2
CASES = {
    "fsdp": Case(2),
    "tied": Case(2),
    "kept": Case(2, ParallelConfig(reshard_after_forward=False)),
    "accumulation": Case(2, accumulation=2),
    "once": Case(2, ParallelConfig(no_sync_accumulation=True), accumulation=2),
    "tensor": Case(2, ParallelConfig(tensor_parallel=2)),
    "rows": Case(2, ParallelConfig(tensor_parallel=2, sequence_parallel=True)),
    "context": Case(2, ParallelConfig(context_parallel=2)),
    "context, checkpointed": Case(2, ParallelConfig(context_parallel=2, activation_checkpointing=True)),
}


@pytest.mark.long
def test_a_step_sends_what_theory_says(tmp_path):
    found = counted(CASES, tmp_path)
    units = LAYERS + 3  # the blocks, the embedding, the head, and the last norm
    again = LAYERS - 1  # gathered on the way back, too: all blocks but the last, which was kept
    gathered, tied = units + again, LAYERS + 1  # one matrix is a unit with the last norm, gathered once and kept
    own = {"allreduce": 2}  # the gradient's norm, and the loss for the log
    expected = {
        "fsdp": {"allgather_base": gathered, "reduce_scatter_base": units, **own},
        "tied": {"allgather_base": tied + again, "reduce_scatter_base": tied, **own},
        "kept": {"allgather_base": units, "reduce_scatter_base": units, **own},
        "accumulation": {"allgather_base": 2 * gathered, "reduce_scatter_base": 2 * units, **own},
        "once": {"allgather_base": 2 * gathered, "reduce_scatter_base": units, **own},
    }
    for name, counts in expected.items():
        assert found[name] == counts

    in_loss = 3  # the largest logit, the sums of one chunk, the gradient of the hidden states
    head_norms = 2 * LAYERS  # gradients of the norms of queries and keys, of which each process has some heads
    both_ways = 4 * LAYERS  # attention and feed-forward
    assert found["tensor"]["all_reduce"] == both_ways + 1 + head_norms  # and the embedding
    assert found["tensor"]["allreduce"] == 2 + in_loss
    assert found["rows"]["all_reduce"] == 1 + head_norms + 2 * LAYERS + 1  # and gradients of the norms between
    assert found["rows"]["all_gather_into_tensor"] == both_ways + 2  # and at either end
    assert found["rows"]["reduce_scatter_tensor"] == both_ways

    keys_and_values = {"all_gather_into_tensor": LAYERS, "reduce_scatter_tensor": LAYERS}
    assert found["context"] == expected["fsdp"] | keys_and_values
    twice = {"all_gather_into_tensor": 2 * LAYERS}  # a checkpointed block gathers them in its second forward pass
    assert found["context, checkpointed"] == expected["fsdp"] | keys_and_values | twice


@pytest.mark.long
def test_muon_sends_each_matrix_to_its_owner_and_back_at_once(tmp_path):
    """Two collectives more than AdamW, whatever the number of layers and of shapes, and one for copies."""
    names = ("fsdp", "tensor")
    cases = {name: CASES[name] for name in names} | {"ddp": Case(2, ddp=True)}
    plain = counted(cases, tmp_path)
    for row_beta2 in (0.0, 0.9):
        folder = tmp_path / f"muon-{row_beta2}"
        folder.mkdir()
        found = counted(cases, folder, MuonConfig(learning_rate=1e-3, row_beta2=row_beta2))
        for name in names:
            assert found[name] - plain[name] == {"alltoall_base": 2}
        assert sum((found["ddp"] - plain["ddp"]).values()) == 1
