"""Train ours and its peers for comparison: `python benchmarks/baselines.py <name> <shape>`.

Each function trains without end and calls `turn.step()` before every step. All take steps of fused AdamW with gradients
clipped to norm 1 in float32, on batches of the same shape. On a GPU all use bf16 autocast and are compiled.

ours            `src/train.py` with all its defaults: progress bar, TensorBoard, csv, schedule, signal handlers
plain_loop      our model and objective in a loop of ten lines, on the same batches
lightning       the same under Lightning's default Trainer, with its usual callbacks
nanogpt         the model and loop of nanoGPT, written anew: fused QKV projection, all logits at once
torchtitan      a Llama in such a loop as torchtitan trains it, written anew: blocks compiled, SDPA, loss in chunks
hugging_face    GPT-2 or BERT of transformers under its Trainer
transformers    transformers' model in a loop, such as ModernBERT and Llama
litgpt          litgpt's model in a loop

On a GPU all train on tokens of the whole vocabulary, in documents of unequal length (`zipf_tokens.py`), on a CPU on
bytes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import zipf_tokens
from peer_models import Logits, litgpt_model, transformers_model
from shapes import Shape, shape_of
from torch import Tensor, nn
from turns import Turn

if TYPE_CHECKING:  # loaded by those who need it: a peer runs where this package's requirements are not installed
    from pretrain.config.run import RunConfig
    from pretrain.objectives.batch import Batch
    from pretrain.objectives.objective import ModelWithLoss


def ours(shape: Shape, turn: Turn, folder: Path) -> None:
    """Train with the code of `src/train.py`."""
    from pretrain.training.launch import launch
    from pretrain.training.lightning_module import TrainingModule

    def begin(module: TrainingModule, batch: Batch, number: int) -> None:
        if number % shape.accumulation == 0:
            turn.step()

    TrainingModule.on_train_batch_start = begin  # type: ignore[method-assign]
    launch(_config(shape, folder), [])


def plain_loop(shape: Shape, turn: Turn, folder: Path) -> None:
    """Train our model without a framework."""
    from pretrain.parallel.config import ParallelConfig
    from pretrain.parallel.parallelize import parallelize

    model_with_loss, batches = our_learner(shape, folder)
    model_with_loss.to(shape.device)
    parallelize(model_with_loss, None, ParallelConfig(compile=shape.gpu), None)
    optimizer = _adamw(model_with_loss)
    while True:
        turn.step()
        for batch in islice(batches, shape.accumulation):
            with _autocast(shape):
                loss_sum, count = model_with_loss(batch.to(shape.device))
            (loss_sum / (count * shape.accumulation)).backward()
        _take(model_with_loss, optimizer)


def lightning(shape: Shape, turn: Turn, folder: Path) -> None:
    """Train our model under Lightning's Trainer, with its progress bar, logger, checkpoints, clipping and monitors."""
    import lightning as L
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ThroughputMonitor, TQDMProgressBar

    model_with_loss, batches = our_learner(shape, folder)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model_with_loss = model_with_loss

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            loss_sum, count = self.model_with_loss(batch)
            self.log("train/loss", loss_sum / count, prog_bar=True)
            return loss_sum / count

        def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
            turn.step()

        def configure_optimizers(self) -> Any:
            optimizer = _adamw(self.model_with_loss)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1_000_000)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1_000_000,
        gradient_clip_val=1.0,
        callbacks=[
            TQDMProgressBar(),
            LearningRateMonitor(),
            ModelCheckpoint(every_n_train_steps=1_000_000),
            ThroughputMonitor(lambda batch: batch.tokens.shape[0], lambda batch: batch.tokens.numel()),
        ],
        default_root_dir=folder,
        use_distributed_sampler=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(_Endless(batches), batch_size=None))


class _Endless(torch.utils.data.IterableDataset[Any]):
    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return self.batches


def nanogpt(shape: Shape, turn: Turn, folder: Path) -> None:
    """Train a plain GPT-2 in a plain loop."""
    from plain_gpt import PlainGPT

    _loop(
        PlainGPT(shape.vocab_size, shape.length, shape.n_layers, shape.n_heads, shape.d_model), mean_loss, shape, turn
    )


def torchtitan(shape: Shape, turn: Turn, folder: Path) -> None:
    """Train a plain Llama in a plain loop, its blocks compiled one by one and its loss in chunks."""
    from plain_llama import PlainLlama

    n_kv_heads = shape.n_kv_heads or shape.n_heads
    model = PlainLlama(shape.vocab_size, shape.n_layers, shape.d_model, shape.n_heads, n_kv_heads, shape.ff_width)
    if shape.gpu:
        for block in model.blocks:
            block.compile()
    _train(model.to(shape.device), model.loss, shape, turn)


def transformers(shape: Shape, turn: Turn, folder: Path) -> None:
    """Train transformers' model of the shape in a plain loop, compiled as a whole."""
    _loop(Logits(transformers_model(shape)), mean_loss, shape, turn)


def mean_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy () of logits (B, T, V) against targets (B, T), of which -100 has none."""
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def litgpt(shape: Shape, turn: Turn, folder: Path) -> None:
    """Train litgpt's model of the same size in a plain loop, with the chunked loss of its pre-training."""
    from litgpt.utils import chunked_cross_entropy

    _loop(litgpt_model(shape), lambda logits, y: chunked_cross_entropy(logits, y, chunk_size=0), shape, turn)


def hugging_face(shape: Shape, turn: Turn, folder: Path) -> None:
    """Train transformers' model of the same shape under its Trainer."""
    from transformers import Trainer, TrainerCallback
    from transformers import TrainingArguments as Arguments

    class Turns(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turn.step()

    arguments = Arguments(
        output_dir=str(folder),
        use_cpu=not shape.gpu,
        bf16=shape.gpu,
        torch_compile=shape.gpu,
        dataloader_num_workers=4 if shape.gpu else 0,
        max_steps=1_000_000,
        per_device_train_batch_size=shape.rows,
        gradient_accumulation_steps=shape.accumulation,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        logging_steps=10,
        save_steps=1_000_000,
        report_to=["tensorboard"],
        warmup_steps=100,
    )
    Trainer(transformers_model(shape), arguments, train_dataset=_Rows(shape), callbacks=[Turns()]).train()


class _Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows in transformers' format: for a masked model some positions have a label, the others are ignored."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.tokens = _tokens(shape)

    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = index * 7 % (len(self.tokens) - self.shape.length)
        tokens = self.tokens[start : start + self.shape.length].clone()
        if not self.shape.masked:
            return {"input_ids": tokens, "labels": tokens}
        hidden, labels = _hide(tokens, self.shape)
        return {"input_ids": hidden, "labels": labels}


def _tokens(shape: Shape) -> Tensor:
    """Return the tokens that peers train on, int64 (N,)."""
    return zipf_tokens.stream(shape.vocab_size, shape.zipf) if shape.zipf else torch.randint(256, (100_000,))


def _hide(tokens: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Return tokens (...) of which some are hidden, and these as labels; the others have the label -100."""
    labels = torch.where(torch.rand(tokens.shape) < shape.masked_share, tokens, -100)
    return torch.where(labels >= 0, zipf_tokens.MASK if shape.zipf else 3, tokens), labels


def our_learner(shape: Shape, folder: Path) -> tuple[ModelWithLoss, Iterator[Batch]]:
    """Return our model with its objective, and the batches of our runs."""
    from pretrain.data.batch_sizes import BatchSizes, StepSize
    from pretrain.data.prepare import prepare, training_rows
    from pretrain.models.init import initialize
    from pretrain.objectives.objective import ModelWithLoss
    from pretrain.training.datamodule import MicroBatches, RankSlice

    config = _config(shape, folder)
    prepared = prepare(config.data, config.tokenizer, folder / "cache")
    rows = training_rows(prepared, config.data, shape.length, config.seed)
    model = config.model.build(shape.vocab_size, not shape.masked)  # type: ignore[attr-defined]
    objective = config.objective.build(prepared.tokenizer, config.seed)
    initialize(model, model.config, config.seed)
    sizes = BatchSizes.constant(StepSize(shape.rows, shape.rows * shape.length, order=""))
    found = MicroBatches(rows, objective, RankSlice(shape.rows), sizes)
    return ModelWithLoss(model, objective), (found[number] for number in range(2**62))


def _config(shape: Shape, folder: Path) -> RunConfig:
    from pretrain.config.compose import compose, register_schemas
    from pretrain.config.run import RunConfig

    shape.write_text(folder)
    register_schemas("train", RunConfig)
    found: RunConfig = compose("train", shape.settings(folder))
    return found


def _adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def _loop(model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], shape: Shape, turn: Turn) -> None:
    """Train a model in a plain loop; on a GPU, model and loss are compiled together, as in nanoGPT."""

    def forward(x: Tensor, y: Tensor) -> Tensor:
        return loss_of(model(x), y)

    _train(model.to(shape.device), torch.compile(forward) if shape.gpu else forward, shape, turn)


def _train(model: nn.Module, step: Callable[[Tensor, Tensor], Tensor], shape: Shape, turn: Turn) -> None:
    """Train a model whose loss for tokens and targets is `step`."""
    optimizer, windows = _adamw(model), windows_of(shape)
    while True:
        turn.step()
        for x, y in islice(windows, shape.accumulation):
            if shape.gpu:
                x, y = (each.pin_memory().to("cuda", non_blocking=True) for each in (x, y))
            with _autocast(shape):
                loss = step(x, y)
            (loss / shape.accumulation).backward()  # type: ignore[no-untyped-call]
        _take(model, optimizer)


def _autocast(shape: Shape) -> torch.autocast:
    return torch.autocast(shape.device, torch.bfloat16, enabled=shape.gpu)


def _take(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def windows_of(shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the micro-batches of the peers, tokens and targets (B, T): what follows, or what is hidden."""
    tokens = _tokens(shape)
    while True:
        starts = torch.randint(len(tokens) - shape.length - 1, (shape.rows,)).tolist()
        x = torch.stack([tokens[start : start + shape.length] for start in starts])
        if shape.masked:
            yield _hide(x, shape)
        else:
            yield x, torch.stack([tokens[start + 1 : start + 1 + shape.length] for start in starts])


CONTENDERS: dict[str, Callable[[Shape, Turn, Path], None]] = {
    each.__name__: each
    for each in (ours, plain_loop, lightning, nanogpt, torchtitan, litgpt, hugging_face, transformers)
}


def main() -> None:
    """Train the baseline named by the first argument at the shape named by the second."""
    name, shape = sys.argv[1:]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        CONTENDERS[name](shape_of(shape), Turn(shape_of(shape).gpu), Path(folder))


if __name__ == "__main__":
    main()
