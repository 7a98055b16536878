"""Scale the user's settings down to a run that takes a second.

The model keeps its norms, positions, activations, grouped-query heads, sliding windows, LM head and tied embeddings.
The run keeps its objective, optimizer, schedule and packing. Small runs use the CPU in float32, where resumed runs must
be equal bit for bit.
"""

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.evaluation.config import ScoresConfig
from pretrain.models.config import ModelConfig, TransformerConfig
from pretrain.models.lora_config import LoraConfig
from pretrain.models.size import parameter_names_without_weights
from pretrain.optim.config import AdamWConfig, OptimizerConfig, typed_groups
from pretrain.parallel.config import ParallelConfig
from pretrain.training.config import LoggingConfig, Precision, StorageConfig, Strategy
from pretrain.training.logger_config import CSVConfig

STEPS = 6
HALF = 3  # step at which a run is interrupted
ROWS = 4  # per step, over all processes
CONTEXT_LENGTH = 64
N_LAYERS = 2  # one with global and one with sliding-window attention, if layers alternate
HEAD_DIM = 32


def shrink(config: RunConfig, run_dir: str | None = None) -> RunConfig:
    """Return the settings of a small run on one CPU, without dropout, stages, adapters, scores and copies.

    Raises ConfigError for a model that is not one of our Transformers, and for a run that fine-tunes.
    """
    refuse_fine_tuning(config)
    model = shrink_model(config.model)
    return replace(
        config,
        name="",
        batch_size=ROWS,
        micro_batch_size=None,
        batch_warmup_tokens=None,
        batch_warmup_rows=None,
        stages={},
        resume=None,
        init_from=None,
        branch=None,
        cooldown=None,
        allow_change=[],
        data=replace(config.data, prefetch=0, max_validation_rows=8),
        model=model,
        lora=LoraConfig(),
        optimizer=_shrink_groups(config, model),
        schedule=replace(config.schedule, warmup_steps=2, warmup_tokens=None, warmup_fraction=None),
        trainer=replace(
            config.trainer,
            accelerator="cpu",
            devices=1,
            num_nodes=1,
            max_restarts=0,
            strategy=Strategy.single,
            precision=Precision.fp32,
            half_residual_stream=False,
            max_steps=STEPS,
            max_tokens=None,
            max_epochs=None,
            max_time=None,
            val_check_interval=1000,
            log_every_n_steps=1,
            enable_progress_bar=False,
            profile_steps=0,
        ),
        parallel=ParallelConfig(activation_checkpointing=config.parallel.activation_checkpointing),
        checkpoint=replace(config.checkpoint, every_n_steps=HALF, keep=0),
        callbacks={},
        loggers={"csv": CSVConfig()},
        logging=LoggingConfig(),
        sample=replace(config.sample, every_n_steps=0, prompts=[], max_new_tokens=1),
        scores=ScoresConfig(),
        paths=replace(config.paths, run_dir=run_dir),
        storage=StorageConfig(),
    )


def _shrink_groups(config: RunConfig, small: TransformerConfig) -> OptimizerConfig:
    """Return the optimizer without patterns that match parameters of the full model alone, such as of its tenth layer.

    Nor has it a group that those before it leave parameters of the full model alone. What is wrong for the full model
    too stays, so that the optimizer refuses it: a pattern that matches no parameter, a group that gets none.
    """
    optimizer = config.optimizer.in_float32()
    if not isinstance(optimizer, AdamWConfig) or not optimizer.groups:
        return optimizer
    names, names_of_full = (parameter_names_without_weights(model) for model in (small, config.model))
    groups = dict[str, Any]()
    left, left_of_full = list(names), list(names_of_full)  # by the groups before
    for name, group in typed_groups(optimizer.groups).items():
        match = [each for each in group.match if _matches([each], names) or not _matches([each], names_of_full)]
        is_wrong = not all(_matches([each], names) for each in match) or not _matches(group.match, left_of_full)
        if is_wrong or _matches(match, left):
            groups[name] = {**optimizer.groups[name], "match": match}
        left, left_of_full = (
            [each for each in rest if not _matches(group.match, [each])] for rest in (left, left_of_full)
        )
    return replace(optimizer, groups=groups)


def _matches(patterns: list[str], names: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def refuse_fine_tuning(config: RunConfig) -> None:
    """Raise ConfigError for a run that fine-tunes."""
    if any(part.annotated for part in config.data.parts().values()):
        raise ConfigError(
            f"data.kind={config.data.kind} fine-tunes, but doctor.py checks pre-training only. "
            "Try the settings of the base model's own run, such as model=gpt_nano."
        )


def shrink_model(model: ModelConfig) -> TransformerConfig:
    """Return a small shape of the same architecture; raise ConfigError if it is not a Transformer."""
    shape = model.transformer
    if shape is None:
        raise ConfigError(
            f"model.kind={model.kind} cannot be scaled down to a small run: only Transformers can. "
            "Try model=gpt_nano, or doctor=data."
        )
    return _shrunk(shape)


def _shrunk(model: TransformerConfig) -> TransformerConfig:
    kv_heads = min(model.kv_heads, 2)
    n_heads = kv_heads * min(model.n_heads // model.kv_heads, 2)
    heads_fill_d_model = model.attention_head_dim * model.n_heads == model.d_model
    d_model = n_heads * (HEAD_DIM if heads_fill_d_model else HEAD_DIM // 2)
    context_length = min(model.context_length, CONTEXT_LENGTH)
    return replace(
        model,
        n_layers=min(model.n_layers, N_LAYERS),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=None if model.n_kv_heads is None else kv_heads,
        head_dim=None if model.head_dim is None else HEAD_DIM,
        base_width=None if model.base_width is None else max(1, round(d_model / model.width_multiplier)),
        d_ff=None if model.d_ff is None else max(8, round(model.d_ff * d_model / model.d_model)),
        context_length=context_length,
        sliding_window=None if model.sliding_window is None else min(model.sliding_window, max(2, context_length // 4)),
        global_attention_layers=[0] if model.global_attention_layers else [],
        global_attention_offset=min(model.global_attention_offset, N_LAYERS - 1),
        dropout=0.0,
        attention_dropout=0.0,
    )


def with_dropout(config: RunConfig, rate: float = 0.1) -> RunConfig:
    """Return the settings with `rate` as dropout and attention dropout."""
    shape = config.model.transformer
    assert shape is not None
    return replace(config, model=replace(shape, dropout=rate, attention_dropout=rate))
