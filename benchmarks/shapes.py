"""Sizes that the training benchmarks compare, and our settings for them."""

from dataclasses import dataclass, replace
from pathlib import Path

import zipf_tokens


@dataclass(frozen=True)
class Shape:
    """A model and its step, the same for all baselines."""

    preset: str  # our preset
    n_layers: int
    d_model: int
    n_heads: int
    vocab_size: int
    length: int  # tokens per row
    rows: int  # per micro-batch
    compile: bool | None = None  # our blocks; None: where it pays, as in any long run
    accumulation: int = 1  # micro-batches per step
    text: Path | None = None  # files that ours reads; None: the documentation of Python
    gpu: bool = False  # on a GPU in bf16, where peers compile too; else on a CPU in float32
    n_kv_heads: int | None = None  # None: as many as there are heads
    d_ff: int | None = None  # None: 4 d_model
    zipf: int = 0  # tokens of `zipf_tokens.py` that all train on; 0: on bytes, ours on those of `text`

    @property
    def family(self) -> str:
        """The family of the model: gpt, bert, modernbert or llama."""
        return self.preset.partition("_")[0]

    @property
    def masked(self) -> bool:
        """Whether it learns to fill masks."""
        return self.masked_share > 0

    @property
    def masked_share(self) -> float:
        """The share of hidden tokens, as in our preset; 0 for a causal model."""
        return {"bert": 0.15, "modernbert": 0.3}.get(self.family, 0.0)

    @property
    def ff_width(self) -> int:
        """Channels of the feed-forward layer."""
        return self.d_ff or 4 * self.d_model

    @property
    def device(self) -> str:
        """The device, as a torch string."""
        return "cuda" if self.gpu else "cpu"

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.length * self.rows * self.accumulation

    def write_text(self, folder: Path) -> None:
        """Write the text that our runs below `folder` read, unless it is there."""
        if self.zipf and not (folder / "zipf").exists():
            zipf_tokens.write(folder / "zipf", self.vocab_size, self.zipf)

    def settings(self, folder: Path) -> list[str]:
        """Return the overrides of `src/train.py` for a run below `folder` that spends no time outside its steps."""
        return [
            f"model={self.preset}",
            f"model.n_layers={self.n_layers}",
            f"model.d_model={self.d_model}",
            f"model.n_heads={self.n_heads}",
            *([f"model.n_kv_heads={self.n_kv_heads}"] if self.n_kv_heads else []),
            *([f"model.d_ff={self.d_ff}"] if self.d_ff else []),
            f"model.context_length={self.length}",
            f"model.vocab_multiple={self.vocab_size}",  # the tokenizer uses only the first ids
            "model.dropout=0",
            "model.attention_dropout=0",
            f"batch_size={self.rows * self.accumulation}",
            f"micro_batch_size={self.rows}",
            "optimizer=adamw",
            "schedule.warmup_steps=100",
            "trainer.max_steps=1000000",  # enough for compilation to be on
            f"parallel.compile={'null' if self.compile is None else str(self.compile).lower()}",
            "trainer.val_check_interval=1000000",
            f"trainer.precision={'bf16' if self.gpu else 'fp32'}",
            f"trainer.accelerator={'gpu' if self.gpu else 'cpu'}",
            "checkpoint.every_n_steps=1000000",
            "sample.every_n_steps=0",
            *self._text(folder),
            f"paths.logs_dir={folder / 'logs'}",
            f"paths.cache_dir={folder / 'cache'}",
        ]

    def _text(self, folder: Path) -> list[str]:
        if self.zipf:
            return zipf_tokens.settings(folder / "zipf")
        return ["tokenizer=bytes", *(["data=text_files", f"data.path={self.text}"] if self.text else [])]


SHAPES = {
    "gpt_1m": Shape("gpt_nano", 4, 128, 2, 512, 32, 1, compile=False),
    "gpt_12m": Shape("gpt_small", 6, 384, 6, 4096, 256, 8),
    "gpt_12m_long": Shape("gpt_small", 6, 384, 6, 4096, 2048, 1),
    "gpt_12m_wide": Shape("gpt_small", 6, 384, 6, 50257, 256, 8),
    "gpt_124m": Shape("gpt_small", 12, 768, 12, 50257, 512, 4),
    "gpt_124m_gpu": Shape("gpt_small", 12, 768, 12, 50304, 1024, 16, accumulation=8, gpu=True, zipf=1_000_000),
    "gpt_124m_long_gpu": Shape("gpt_small", 12, 768, 12, 50304, 4096, 4, accumulation=8, gpu=True, zipf=1_000_000),
    "bert_110m_gpu": Shape("bert_base", 12, 768, 12, 30592, 128, 128, accumulation=8, gpu=True, zipf=1_000_000),
    "modernbert_150m_gpu": Shape(
        "modernbert_base", 22, 768, 12, 50368, 1024, 16, accumulation=8, gpu=True, d_ff=1152, zipf=1_000_000
    ),
    "llama_1b_gpu": Shape(
        "llama_1b", 16, 2048, 32, 128256, 2048, 4, accumulation=4, gpu=True, n_kv_heads=8, d_ff=8192, zipf=1_000_000
    ),
    "bert_12m": Shape("bert_base", 6, 384, 6, 4096, 128, 16),
    "bert_110m": Shape("bert_base", 12, 768, 12, 30522, 128, 16),
    # to try the benchmarks of GPUs on a CPU
    "gpt_tiny": Shape("gpt_nano", 2, 64, 2, 512, 64, 4, compile=False, accumulation=2, zipf=20_000),
    "bert_tiny": Shape("bert_nano", 2, 64, 2, 512, 64, 4, compile=False, zipf=20_000),
    "modernbert_tiny": Shape("modernbert_nano", 3, 64, 2, 512, 64, 4, compile=False, d_ff=96, zipf=20_000),
    "llama_tiny": Shape(
        "llama_nano", 2, 64, 4, 512, 64, 4, compile=False, accumulation=2, n_kv_heads=2, d_ff=96, zipf=20_000
    ),
}


def shape_of(name: str) -> Shape:
    """Return the shape of a name; of `name@rows` with micro-batches of that many rows and as many tokens a step."""
    shape, _, rows = name.partition("@")
    found = SHAPES[shape]
    if not rows:
        return found
    return replace(found, rows=int(rows), accumulation=max(1, found.rows * found.accumulation // int(rows)))
