"""The memory of the fullest device, part by part, from formulas over a run's settings."""

from dataclasses import dataclass
from functools import cached_property
from math import prod

from pretrain.planning.activations import (
    FLOAT,
    activation_bytes,
    block_bytes,
    chunked,
    compute_bytes,
    first_block_bytes,
    kept_by_loss_bytes,
    logits_bytes,
    weight_bytes,
)
from pretrain.planning.workload import Workload
from pretrain.training.config import Strategy


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that holds most."""

    weights: int  # float32, of a shard or of the whole
    gradients: int
    earlier_gradients: int  # that are there when a micro-batch begins: those of the step's earlier ones
    optimizer: int  # two moments of AdamW, one of Muon's matrices
    copies: int  # of weights in bf16, which autocast keeps through a micro-batch
    buckets: int  # of gradients on their way between devices (DDP)
    gathered: int  # whole weights and gradients of FSDP2's units in use
    activations: int  # kept by one micro-batch, the loss's part included
    logits: int  # that exist at one moment
    block: int  # what one block makes on its way back, its activations once more where they are checkpointed
    step: int  # temporaries of the optimizer
    loss_gradient: int  # of the vocabulary matrix, made first
    tied_gradients: int  # of a matrix that head and embedding share: from both, and their sum
    first_block: int  # that block's part of the activations, the last to go
    first_block_gradients: int  # that are not there before its way back: its own, and those of the embeddings
    reducing_block: int  # of FSDP2: whole gradients of a block, and a copy of them to send
    reducing_outside: int  # the same of embeddings and head

    @property
    def state(self) -> int:
        """What is there at any time between two steps."""
        return self.weights + self.optimizer + self.buckets

    @cached_property
    def moments(self) -> dict[str, int]:
        """Bytes at the moments that can be the highest; with several micro-batches, of one after the first."""
        running = self.state + self.gathered
        loss = self.copies + self.activations + max(self.logits, self.loss_gradient, self.block, self.reducing_block)
        end = max(self.block, self.tied_gradients, self.reducing_outside)
        return {
            "the loss": running + self.earlier_gradients + loss,
            "the first block's way back": running
            + self.gradients
            - self.first_block_gradients
            + self.first_block
            + max(self.block, self.reducing_block),
            "the end of the backward pass": running + self.gradients + end,
            "the optimizer's step": self.state + self.gradients + self.step,
        }

    @property
    def highest_at(self) -> str:
        """The moment of the peak."""
        return max(self.moments, key=lambda name: self.moments[name])

    @property
    def peak(self) -> int:
        """The most bytes at one moment."""
        return max(self.moments.values())


def memory_of(work: Workload) -> Memory:
    """Return the memory of a workload; a GPU gathers the next unit while it computes with the one before."""
    held = sum(work.held(name) for name in work.shapes)
    matrices = sum(work.held(name) for name in work.matrices)
    kept = activation_bytes(work) + kept_by_loss_bytes(work)
    return Memory(
        weights=held * FLOAT,
        gradients=held * FLOAT,
        earlier_gradients=held * FLOAT if work.accumulation > 1 else 0,
        optimizer=(2 * held - matrices) * FLOAT,
        copies=autocast_copies(work),
        buckets=held * FLOAT if work.strategy is Strategy.ddp else 0,
        gathered=_gathered(work),
        activations=kept,
        logits=logits_bytes(work),
        block=_block_on_its_way_back(work),
        step=_step(work),
        loss_gradient=_vocabulary_gradient(work) if chunked(work) else 0,
        tied_gradients=_tied_gradients(work),
        first_block=first_block_bytes(work),
        first_block_gradients=_gradients_to_come(work),
        reducing_block=_reducing(work, _units(work)[0]),
        reducing_outside=_reducing(work, _units(work)[1]),
    )


def autocast_copies(work: Workload) -> int:
    """Return the bytes of the weights that autocast converts to bf16 once and keeps while a micro-batch lasts."""
    if not work.bf16 or work.sharded:
        return 0
    inside = sum(prod(shape) for name, shape in work.shapes.items() if name.startswith("blocks.") and len(shape) == 2)
    return 2 * (inside + (0 if chunked(work) else work.vocab_size * work.model.d_model))


def _gradients_to_come(work: Workload) -> int:
    if work.accumulation > 1:
        return 0
    later = [name for name in work.shapes if name.startswith(("blocks.0.", "embeddings."))]
    tie_embeddings = work.model.tie_embeddings and not work.sharded  # the head's part of a shared matrix is there first
    return FLOAT * sum(work.held(name) for name in later if not (tie_embeddings and name == "embeddings.tokens.weight"))


def _units(work: Workload) -> tuple[int, int]:
    """Return how many numbers FSDP2's largest block has, and its outermost unit: embeddings, final norm and head."""
    inside: dict[str, int] = {}
    outside = 0
    for name in work.shapes:
        if name.startswith("blocks."):
            block = name.split(".")[1]
            inside[block] = inside.get(block, 0) + prod(work.computed_with(name))
        else:
            outside += prod(work.computed_with(name))
    return max(inside.values()), outside


def _gathered(work: Workload) -> int:
    """Return the bytes of whole weights and gradients of the units in use at once."""
    if not work.sharded:
        return 0
    block, outside = _units(work)
    blocks = (2 if work.gpu else 1) if work.reshard_after_forward else work.model.n_layers
    return (outside + blocks * block) * weight_bytes(work)


def _block_on_its_way_back(work: Workload) -> int:
    again = block_bytes(work) if work.activation_checkpointing else 0
    return again + work.tokens * work.model.ff_width // work.split * compute_bytes(work)


def _reducing(work: Workload, numbers: int) -> int:
    if not work.sharded:
        return 0
    sent_to_copies = numbers * FLOAT // work.parallel_dims.shards if work.parallel_dims.replicas > 1 else 0
    return numbers * (weight_bytes(work) + FLOAT) + sent_to_copies


def _tied_gradients(work: Workload) -> int:
    """Return the bytes of both gradients and their sum, less what counts as a gradient but is not there yet."""
    if not work.model.tie_embeddings:
        return 0
    there_later = 0 if work.accumulation > 1 else work.held("embeddings.tokens.weight") * FLOAT
    return 3 * _vocabulary_gradient(work) - there_later


def _vocabulary_gradient(work: Workload) -> int:
    return work.vocabulary_held * work.model.d_model * weight_bytes(work)


def _step(work: Workload) -> int:
    """Return Muon's stacks of the shape that has most numbers, of which about five live at once."""
    by_shape: dict[tuple[int, ...], int] = {}
    for name in work.matrices:
        shape = work.computed_with(name)
        by_shape[shape] = by_shape.get(shape, 0) + prod(shape)
    return 5 * FLOAT * max(by_shape.values(), default=0)
