"""What the model writes, or fills in, while it trains: text to read beside the curves."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.distributed.tensor import DTensor

from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError
from pretrain.interop.load import build_without_weights
from pretrain.language_model import LanguageModel
from pretrain.launch.rank import rank
from pretrain.models.transformer import Transformer
from pretrain.objectives.config import ClassifyConfig
from pretrain.optim.groups import parameters_by_name
from pretrain.parallel.mesh import full_tensor
from pretrain.training.callbacks.checkpoints import Checkpoints, unless_asked
from pretrain.training.config import SampleConfig
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.throughput import Throughput

CAUSAL_PROMPTS = ["The", "If you want to", "Return the"]
MASKED_PROMPTS = [
    "The quick [MASK] fox jumps over the lazy dog.",
    "Return the [MASK] of the list.",
    "If the file does not exist, an [MASK] is raised.",
]


class Writer:
    """Lets a model that is being trained write: as it stands, or a copy of its gathered shards."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer

    def sample(self, model: Transformer, seed: int) -> str:
        """Return what the model makes of the prompts, one paragraph each; on other processes than the first, nothing.

        Every process takes part where the model is sharded.
        """
        model = self.whole_model(model)
        return "" if rank() > 0 else self.write(model, seed)

    def write(self, model: Transformer, seed: int) -> str:
        """Return what a model that is whole makes of the prompts."""
        was_training = model.training
        try:
            objective = self.config.objective
            language_model = LanguageModel(
                model,
                self.tokenizer,
                fills_masks=objective.fills_masks,
                classifier=objective if isinstance(objective, ClassifyConfig) else None,
            )
            with torch.compiler.set_stance("force_eager"):  # blocks compiled to train are not compiled again to write
                return sample_text(language_model, self.config.sample, seed)
        finally:
            model.train(was_training)

    def whole_model(self, model: Transformer) -> Transformer:
        """Return the model itself, or on the first process a gathered copy on the CPU where it is sharded."""
        if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            return model
        copy = build_without_weights(self.config.model, self.config.objective, self.tokenizer)
        if rank() == 0:
            copy.to_empty(device="cpu")
            copy.tie()
        targets = dict(copy.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters_by_name(model).items():
                value = full_tensor(parameter)
                if rank() == 0:
                    targets[name].copy_(value)
        return copy


class Samples(Callback):
    """Writes samples to TensorBoard every n steps; its random choices are its own and do not touch the training's.

    A signal ends that at once.
    """

    def __init__(self, writer: Writer, throughput: Throughput, checkpoints: Checkpoints) -> None:
        self.writer = writer
        self.throughput = throughput
        self.checkpoints = checkpoints

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sample where it is time to, at the end of a step."""
        every, step = self.writer.config.sample.every_n_steps, trainer.global_step
        ended = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ended and (step == trainer.max_steps or (every and step % every == 0)):
            assert isinstance(pl_module, TrainingModule)
            model = pl_module.model_with_loss.model
            assert isinstance(model, Transformer)
            with self.throughput.paused("samples"):
                full_tensor = self.writer.whole_model(model)  # every process takes part where the model is sharded
                if rank() == 0:
                    text = unless_asked(pl_module, lambda: self.writer.write(full_tensor, seed=step))
                    log_text(trainer, "samples", text or "", step)
                self.checkpoints.stop_where_asked_meanwhile(trainer, pl_module)


def sample_text(language_model: LanguageModel, config: SampleConfig, seed: int) -> str:
    """Return continuations or filled masks of the prompts, one paragraph each."""
    if language_model.labels:
        return "\n\n".join(_classified(language_model, prompt) for prompt in config.prompts)
    default = CAUSAL_PROMPTS if language_model.causal else []
    default = default + MASKED_PROMPTS if language_model.fills_masks else default
    return "\n\n".join(_answer(language_model, prompt, config, seed) for prompt in config.prompts or default)


def _answer(language_model: LanguageModel, prompt: str, config: SampleConfig, seed: int) -> str:
    """Return what the model makes of a prompt; one that it cannot take must not end a training run."""
    try:
        if "[MASK]" in prompt or not language_model.causal:
            return _filled(language_model, prompt)
        return _continued(language_model, prompt, config, seed)
    except ConfigError as error:
        return f"{prompt}\n    (no sample: {error})"


def _continued(language_model: LanguageModel, prompt: str, config: SampleConfig, seed: int) -> str:
    room = language_model.model.config.context_length - 1 - len(language_model.tokenizer.encode_prompt(prompt))
    return language_model.generate(
        prompt,
        max_new_tokens=max(1, min(config.max_new_tokens, room)),
        temperature=config.temperature,
        top_k=config.top_k or None,
        repetition_penalty=config.repetition_penalty,
        seed=seed,
    )


def _classified(language_model: LanguageModel, text: str) -> str:
    probabilities = language_model.classify(text)
    best = sorted(probabilities, key=lambda label: -probabilities[label])[:5]
    return f"{text}\n    " + "   ".join(f"{label!r} {probabilities[label]:.1%}" for label in best)


def _filled(language_model: LanguageModel, prompt: str) -> str:
    masks = language_model.predict_mask(prompt)
    answers = ["   ".join(f"{answer.token.strip()!r} {answer.probability:.1%}" for answer in each) for each in masks]
    return "\n    ".join([prompt, *answers])


def log_text(trainer: L.Trainer, tag: str, text: str, step: int) -> None:
    """Show text as it stands, in TensorBoard, where it is on."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            indented = "\n".join(f"    {line}" for line in text.splitlines())  # four spaces: Markdown shows it verbatim
            logger.experiment.add_text(tag, indented, step)
