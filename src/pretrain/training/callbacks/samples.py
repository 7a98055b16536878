"""What the model writes, or fills in, while it trains: text to read beside the curves."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from pretrain.errors import ConfigError
from pretrain.language_model import LanguageModel
from pretrain.training.config import SampleConfig
from pretrain.training.throughput import Throughput

CAUSAL_PROMPTS = ["The", "If you want to", "Return the"]
MASKED_PROMPTS = [
    "The quick [MASK] fox jumps over the lazy dog.",
    "Return the [MASK] of the list.",
    "If the file does not exist, an [MASK] is raised.",
]


class Samples(Callback):
    """Writes samples to TensorBoard every n steps; its random choices are its own and do not touch the training's."""

    def __init__(self, config: SampleConfig, language_model: LanguageModel, throughput: Throughput) -> None:
        self.config = config
        self.language_model = language_model
        self.throughput = throughput

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sample where it is time to, at the end of a step."""
        every, step = self.config.every_n_steps, trainer.global_step
        ended = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ended and trainer.is_global_zero and (step == trainer.max_steps or (every and step % every == 0)):
            with self.throughput.paused():
                log_text(trainer, "samples", sample_text(self.language_model, self.config, seed=step), step)


def sample_text(language_model: LanguageModel, config: SampleConfig, seed: int) -> str:
    """Return continuations or filled masks of the prompts, one paragraph each."""
    model = language_model.model
    was_training = model.training
    model.eval()
    try:
        default = CAUSAL_PROMPTS if language_model.causal else MASKED_PROMPTS
        return "\n\n".join(_answer(language_model, prompt, config, seed) for prompt in config.prompts or default)
    finally:
        model.train(was_training)


def _answer(language_model: LanguageModel, prompt: str, config: SampleConfig, seed: int) -> str:
    """Return what the model makes of a prompt; one that it cannot take must not end a training run."""
    try:
        return (
            _continued(language_model, prompt, config, seed)
            if language_model.causal
            else _filled(language_model, prompt)
        )
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
