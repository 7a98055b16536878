"""16-bit copies of the matrices, made once a step, change no bit of a training."""

import copy
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import pytest
import torch
from subjects import VOCABULARY, subject
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.kernels.half_copies import HalfCopies
from pretrain.models.interface import blocks_of
from pretrain.models.layers import use_half_stream
from pretrain.models.lora import add_adapters, initial_adapter, is_adapter
from pretrain.models.lora_config import LoraConfig
from pretrain.models.transformer import Transformer
from pretrain.objectives import loss
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.config import MuonConfig
from pretrain.parallel.mesh import load_parameters
from pretrain.parallel.parity import TrainingTask
from pretrain.parallel.precision import autocast
from pretrain.training.graphs import MicroBatchGraphs, PlainCalls

STEPS, ACCUMULATION, ROWS = 3, 2, 4
LORA = LoraConfig(rank=2, targets=["blocks.*"])


def build(task: TrainingTask, lora: bool) -> ModelWithLoss:
    model_with_loss = task.build()
    if lora:
        add_adapters(model_with_loss.model, LORA, trained="head")
    model_with_loss.to_empty(device="cpu")
    model = model_with_loss.model
    assert isinstance(model, Transformer)
    model.tie()

    def value(name: str, size: torch.Size) -> Tensor:
        if not is_adapter(name):
            return task.values(name, size)
        return initial_adapter(name, size, seed=0) + 0.01

    load_parameters(model, value)
    return model_with_loss.train()


class Recorded(PlainCalls):
    """Plain calls that insist, as a graph does, on tensors that stay where they were at the recording."""

    def __init__(self, tensors: Callable[[], list[Tensor]]) -> None:
        self.tensors = tensors

    def record(self, work: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], tuple[Tensor, Tensor]]:
        """Return work with the check."""
        recorded = [tensor.data_ptr() for tensor in self.tensors()]

        def replay() -> tuple[Tensor, Tensor]:
            assert [tensor.data_ptr() for tensor in self.tensors()] == recorded
            return work()

        return replay


def trained(task: TrainingTask, half: torch.dtype, copies: bool, graphs: bool = False, **options: bool) -> list[Tensor]:
    """Return the losses, gradients and validation losses of each step, then weights and optimizer state."""
    model_with_loss = build(task, options.get("lora", False))
    if options.get("stream"):
        use_half_stream(model_with_loss.model)
    if options.get("compiled"):
        for block in blocks_of(model_with_loss.model):
            block.compile(dynamic=False, fullgraph=True, backend="aot_eager_decomp_partition")
    optimizer, made = task.optimizer.build(model_with_loss.model), None
    if copies:
        made = HalfCopies(model_with_loss.model, half)
    seen: list[Tensor] = []

    def work(batch: Any) -> tuple[Tensor, Tensor]:
        with autocast("cpu", half):
            total, count = model_with_loss(batch)
        (total / 100.0).backward()
        return total.detach(), count

    compute = MicroBatchGraphs(work, Recorded(lambda: made.tensors if made else [])) if graphs else work
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=not graphs)
        if made:
            made.refresh()
        batch = task.batch(step)
        parts = [batch.map(itemgetter(slice(start, start + ROWS))) for start in range(0, ROWS * ACCUMULATION, ROWS)]
        seen += [compute(part)[0].clone() for part in parts]
        seen += [p.grad.clone() for p in model_with_loss.parameters() if p.grad is not None]
        optimizer.step()
        if made:
            made.refresh()  # as before a validation
        with autocast("cpu", half):
            seen += model_with_loss.evaluate(batch)
    seen += [parameter.detach().clone() for parameter in model_with_loss.parameters()]
    return seen + [each for state in optimizer.state.values() for each in state.values() if isinstance(each, Tensor)]


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other) > 20
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("family", "changes", "chunked"),
    [
        ("gpt", {}, True),
        ("gpt", {"tie_embeddings": False}, False),
        ("llama", {}, False),
        ("llama", {"tie_embeddings": True}, True),
        ("bert", {}, False),
        ("bert", {}, True),
        ("gated", {}, False),
        ("gemma", {}, True),
        ("diffusion", {}, True),
    ],
)
def test_no_bit_of_a_training_changes(
    family: str, changes: dict[str, bool], chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain and by emulated graphs, whose copies stay where they are; tied and untied; all logits at once and not."""
    if chunked:
        monkeypatch.setattr(loss, "MAX_UNCHUNKED_LOGITS", 0)
        monkeypatch.setattr(loss, "MAX_CHUNK_LOGITS", 20 * VOCABULARY)
    train = partial(trained, subject(family, dropout=0.0, **changes), torch.bfloat16)
    assert_equal(train(copies=True, graphs=True), train(copies=False, graphs=True))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_no_bit_changes_with_muon_in_either_format(half: torch.dtype) -> None:
    train = partial(trained, subject("llama", MuonConfig(learning_rate=3e-3)), half)
    assert_equal(train(copies=True), train(copies=False))


@pytest.mark.slow
def test_no_bit_changes_where_only_adapters_and_the_head_learn() -> None:
    train = partial(trained, subject("llama"), torch.bfloat16, lora=True)
    assert_equal(train(copies=True), train(copies=False))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("family", ["llama", "modern_bert"])
def test_no_bit_changes_in_compiled_blocks(family: str) -> None:
    """Traced forward and back as for the C++ compiler, which is not called; each block is one graph.

    The residual stream is in 16 bits, which has to be traced too.
    """
    train = partial(trained, subject(family), torch.bfloat16, graphs=True, compiled=True, stream=True)
    results, graphs = [], []
    for copies in (True, False):
        counters.clear()
        results.append(train(copies=copies))
        graphs.append(counters["stats"]["unique_graphs"])
        torch.compiler.reset()
    assert_equal(*results)
    assert graphs[0] == graphs[1] > 0  # one for all blocks, not one for each copy


@pytest.mark.parametrize("copies", [False, True])
def test_no_matrix_is_cast_at_its_uses(copies: bool) -> None:
    model_with_loss = build(subject("gpt"), lora=False)
    if copies:
        HalfCopies(model_with_loss.model, torch.bfloat16)
    read: list[str] = []
    names = {p.data_ptr(): name for name, p in model_with_loss.named_parameters() if p.dim() == 2}

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "_to_copy" in str(func):
                read.append(names.get(args[0].data_ptr(), ""))
            return func(*args, **(kwargs or {}))

    with Casts():
        for _ in range(2):
            with autocast("cpu", torch.bfloat16):
                total, _ = model_with_loss(subject("gpt").batch(0))
            total.backward()
    assert len(set(read)) == (1 if copies else 14)  # biases; else also the matrices of two blocks and the head


def test_without_autocast_layers_compute_with_the_weights_themselves() -> None:
    model_with_loss, plain = (build(subject("bert"), lora=False) for _ in range(2))
    copies = HalfCopies(model_with_loss.model, torch.bfloat16)
    for tensor in copies.tensors:
        tensor.zero_()
    batch = subject("bert").batch(0)
    found, expected = model_with_loss(batch)[0], plain(batch)[0]
    assert torch.equal(found, expected)
    for each in (found, expected):
        each.backward()
    for one, other in zip(model_with_loss.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
    assert model_with_loss.state_dict().keys() == plain.state_dict().keys()
    assert copy.deepcopy(model_with_loss)(batch)[0] == found
