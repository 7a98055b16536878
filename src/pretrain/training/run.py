"""A training run, in reading order: data, model, objective, optimizer, trainer, and off it goes."""

import logging
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from pretrain.checkpoint import open_checkpoint, sweep
from pretrain.config import RunConfig, to_dict
from pretrain.data.batches import RowStream
from pretrain.data.order import ORDER_VERSION
from pretrain.data.packing import PLAN_VERSION
from pretrain.data.prepare import Prepared, prepare
from pretrain.device import peak_flops_per_s
from pretrain.errors import ConfigError, DataError
from pretrain.language_model import LanguageModel, empty_model, load_weights
from pretrain.models.config import TransformerConfig
from pretrain.models.init import initialise
from pretrain.models.size import parameter_count, training_flops_per_token
from pretrain.models.transformer import Transformer
from pretrain.objectives.config import MaskedConfig
from pretrain.objectives.objective import Learner
from pretrain.planning.scaling import data_warnings
from pretrain.training.callbacks.checkpoints import Checkpoints
from pretrain.training.callbacks.metrics import Metrics, write
from pretrain.training.callbacks.progress import Progress
from pretrain.training.callbacks.samples import Samples, log_text, sample_text
from pretrain.training.checkpointing import Restore, RunState, set_step
from pretrain.training.config import Precision
from pretrain.training.data import TextDataModule
from pretrain.training.launch import Placement
from pretrain.training.loggers import LongCSVLogger, RunTensorBoard
from pretrain.training.module import TrainingModule
from pretrain.training.report import Report
from pretrain.training.strategy import choose_device, resolve_precision
from pretrain.training.throughput import Throughput


def run(placement: Placement) -> Report:
    """Train as the placement says and return the report; raises a PretrainError where it cannot go on."""
    config, folder, resumed = placement.config, placement.folder, placement.resumed
    _quiet_lightning()
    sweep(folder / "checkpoints")
    device = choose_device(config.trainer)
    precision = resolve_precision(config, device)

    prepared = prepare(config.data, config.tokenizer, Path(config.paths.cache_dir))
    model = _build_model(placement, prepared)
    objective = config.objective.build(prepared.tokenizer, config.seed)
    data = _build_data(config, prepared, objective)
    module = _build_module(config, prepared, data, Learner(model, objective))
    _warn(config, model, prepared)

    shape = config.model
    assert isinstance(shape, TransformerConfig)
    start = resumed.step if resumed else 0
    throughput = Throughput()
    metrics = Metrics(
        throughput,
        every_n_steps=config.trainer.log_every_n_steps,
        flops_per_token=training_flops_per_token(shape, model.vocab_size, _head_share(config)),
        peak_flops_per_s=peak_flops_per_s(device, precision is Precision.bf16)[0],
        tokens_seen=int(resumed.progress["tokens_seen"]) if resumed else 0,
    )
    language_model = LanguageModel(model, prepared.tokenizer)
    model.train()
    trainer = _build_trainer(config, folder, device, precision, start, validates=prepared.validation is not None)
    state = RunState(
        trainer,
        module,
        metrics,
        folder=folder / "checkpoints",
        keep=config.checkpoint.keep,
        config=to_dict(config),
        facts=_facts(config, prepared, model),
        save_tokenizer=prepared.tokenizer.save,
    )
    callbacks: list[Callback] = [metrics]
    callbacks += [Progress(metrics)] if config.trainer.enable_progress_bar else []
    callbacks += [
        Checkpoints(state.save, throughput, config.checkpoint.every_n_steps),
        Samples(config.sample, language_model, throughput),
    ]
    callbacks += [Restore(resumed)] if resumed else []
    trainer.callbacks.extend(callbacks)
    set_step(trainer, start)

    print(_opening(config, model, prepared, device, precision), flush=True)
    L.seed_everything(config.seed, workers=False, verbose=False)
    log_text(trainer, "config", yaml.safe_dump(to_dict(config), sort_keys=False), start)
    if start < config.trainer.max_steps:
        trainer.fit(module, datamodule=data)
    validation = _final_validation(trainer, module, data)
    report = Report(
        folder=str(folder),
        steps=max(start, trainer.global_step),
        tokens_seen=metrics.tokens_seen,
        parameters=sum(p.numel() for p in model.parameters()),
        causal=config.objective.causal,
        validation=validation,
        tokens_per_s=throughput.mean_tokens_per_s(),
        training_s=throughput.training_s,
        sample=sample_text(language_model, config.sample, seed=config.seed),
    )
    report.save()
    return report


def _build_model(placement: Placement, prepared: Prepared) -> Transformer:
    """Return the model with its weights: of the run resumed, of `init_from`, or fresh."""
    config, resumed = placement.config, placement.resumed
    model = empty_model(config, prepared.tokenizer)
    if resumed is not None:
        _check_same_data(resumed.progress, prepared)
        load_weights(model, resumed)
    elif config.init_from:
        given = open_checkpoint(Path(config.init_from))
        if given.progress["tokenizer_fingerprint"] != prepared.tokenizer.fingerprint:
            raise ConfigError(
                f"init_from={config.init_from} was trained with another tokenizer "
                f"({given.progress['tokenizer_fingerprint'][:12]}) than this run's "
                f"({prepared.tokenizer.fingerprint[:12]}). "
                f"Try tokenizer=pretrained tokenizer.path={given.tokenizer_folder}."
            )
        load_weights(model, given)
    else:
        assert isinstance(config.model, TransformerConfig)
        initialise(model, config.model, config.seed)
    return model


def _check_same_data(progress: dict[str, Any], prepared: Prepared) -> None:
    found = {
        "tokenizer_fingerprint": prepared.tokenizer.fingerprint,
        "data_fingerprint": prepared.train.fingerprint,
        "order_version": ORDER_VERSION,
        "plan_version": PLAN_VERSION,
    }
    for name, value in found.items():
        if progress.get(name) != value:
            raise DataError(
                f"the run resumed was trained with {name} {progress.get(name)}, and here it is {value}: the text or "
                "the program has changed since. Bring the old one back, or start anew with init_from=<run>."
            )


def _build_data(config: RunConfig, prepared: Prepared, objective: Any) -> TextDataModule:
    pad = prepared.tokenizer.pad_id
    pad_id = prepared.tokenizer.eos_id if pad is None else pad
    length = config.model.context_length
    train = RowStream(prepared.train, config.data, length, pad_id, config.seed)
    validation = (
        RowStream(prepared.validation, config.data, length, pad_id, seed=0) if prepared.validation is not None else None
    )
    return TextDataModule(
        train,
        validation,
        objective,
        size=config.rows_per_micro_batch(),
        batch_size=config.batch_size,
        max_validation_rows=config.data.max_validation_rows,
        num_workers=config.data.num_workers,
    )


def _build_module(config: RunConfig, prepared: Prepared, data: TextDataModule, learner: Learner) -> TrainingModule:
    masked = isinstance(config.objective, MaskedConfig)
    per_row = len(learner.objective.make_batch(data.train_stream.read(torch.zeros(1, dtype=torch.int64).numpy()),
                                               torch.zeros(1, dtype=torch.int64)).targets[0])  # fmt: skip
    store = prepared.validation
    return TrainingModule(
        learner,
        config.optimizer,
        config.schedule,
        max_steps=config.trainer.max_steps,
        clip_norm=config.trainer.gradient_clip_val,
        expected_targets=float(per_row * config.batch_size),
        bits_per_byte_of_a_nat=None if masked or store is None else store.bits_per_byte_of_a_nat(),
    )


def _build_trainer(
    config: RunConfig, folder: Path, device: torch.device, precision: Precision, start: int, validates: bool
) -> L.Trainer:
    accumulation = config.accumulation_steps()
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=config.trainer.devices,
        precision="bf16-mixed" if precision is Precision.bf16 else "32-true",
        max_steps=config.trainer.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulation,
        val_check_interval=config.trainer.val_check_interval * accumulation,
        check_val_every_n_epoch=None,
        log_every_n_steps=1,  # ours go straight to the loggers; this only keeps Lightning from warning
        deterministic=config.trainer.deterministic,
        logger=_loggers(config, folder, start),
        limit_val_batches=1.0 if validates else 0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


def _loggers(config: RunConfig, folder: Path, start: int) -> list[Logger]:
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf8")
    loggers: list[Logger] = []
    if config.logger.tensorboard:
        loggers.append(RunTensorBoard(folder, resumed_at=start))
    if config.logger.csv:
        loggers.append(LongCSVLogger(folder / "metrics.csv", resumed_at=start))
    return loggers


def _final_validation(trainer: L.Trainer, module: TrainingModule, data: TextDataModule) -> dict[str, float]:
    """Return the figures of the weights at the end, from the last validation if it was at the last step."""
    if data.validation_stream is None:
        return {}
    trainer.validate(module, datamodule=data, verbose=False)
    write(trainer, module.validated, trainer.global_step)
    return module.validated


def _facts(config: RunConfig, prepared: Prepared, model: Transformer) -> dict[str, Any]:
    return {
        "objective": config.objective.kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokenizer_fingerprint": prepared.tokenizer.fingerprint,
        "data_fingerprint": prepared.train.fingerprint,
        "order_version": ORDER_VERSION,
        "plan_version": PLAN_VERSION,
        "torch": torch.__version__,
    }


def _head_share(config: RunConfig) -> float:
    return config.objective.mask_probability if isinstance(config.objective, MaskedConfig) else 1.0


def _warn(config: RunConfig, model: Transformer, prepared: Prepared) -> None:
    planned = config.trainer.max_steps * config.batch_size * config.model.context_length
    parameters = sum(p.numel() for p in model.parameters())
    for sentence in data_warnings(parameters, prepared.train.n_tokens, planned):
        print(f"warning: {sentence}")


def _opening(
    config: RunConfig, model: Transformer, prepared: Prepared, device: torch.device, precision: Precision
) -> str:
    assert isinstance(config.model, TransformerConfig)
    parameters = parameter_count(config.model, model.vocab_size)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    threads = f", {torch.get_num_threads()} threads of {os.cpu_count()}" if device.type == "cpu" else ""
    return (
        f"training {config.name or 'a model'} ({parameters:,} parameters, {config.objective.kind}) on {device.type} "
        f"({name}{threads}) in {precision.name}: {config.trainer.max_steps:,} steps of {config.batch_size} rows x "
        f"{config.model.context_length} tokens, {prepared.train.n_tokens:,} tokens of data"
    )


def _quiet_lightning() -> None:
    """Keep Lightning's banners and advice to itself: what matters here, the run says."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.. is deprecated.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*Experiment logs directory .* exists and is not empty.*")
