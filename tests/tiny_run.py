"""Runs that take about a second."""

from pathlib import Path

from pretrain.config.compose import compose
from pretrain.config.run import RunConfig
from pretrain.launch.run_plan import RunPlan, resolve_run


class TinyRun:
    """Makes placements of runs that take about a second, all below one folder."""

    def __init__(self, corpus: Path, folder: Path) -> None:
        self.folder = folder
        self.words = [
            "data=text_files",
            f"data.path={corpus}",
            "tokenizer=bytes",
            "model.n_layers=2",
            "model.d_model=16",
            "model.n_heads=2",
            "model.context_length=32",
            "model.dropout=0.1",
            "batch_size=4",
            "trainer.max_steps=12",
            "trainer.val_check_interval=5",
            "trainer.log_every_n_steps=1",
            "trainer.enable_progress_bar=false",
            "trainer.precision=fp32",
            "checkpoint.every_n_steps=4",
            "schedule.warmup_steps=2",
            "sample.max_new_tokens=4",
            "logging.report=false",
            f"paths.cache_dir={folder / 'cache'}",
            f"paths.logs_dir={folder / 'logs'}",
        ]

    def config(self, *words: str) -> RunConfig:
        """Return the settings with more words after the usual ones."""
        found: RunConfig = compose("train", [*self.words, *words])
        return found

    def plan(self, *words: str) -> RunPlan:
        """Return the run plan of these overrides."""
        return resolve_run(self.config(*words), [*self.words, *words])
