"""Samples of the model during training: completions, filled masks or labels of prompts, as text in the loggers."""

from collections.abc import Sequence
from dataclasses import replace

import lightning as L
import torch
from torch.distributed.tensor import DTensor

from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError, DivergenceError
from pretrain.inference.config import GenerationOptions
from pretrain.interop.load import build, build_without_weights
from pretrain.language_model import LanguageModel
from pretrain.launch.rank import rank
from pretrain.models.interface import LanguageModule, allocate
from pretrain.models.lora import add_adapters
from pretrain.optim.groups import parameters_by_name
from pretrain.parallel.mesh import full_tensor
from pretrain.training.callbacks import StepCallback
from pretrain.training.callbacks.checkpoints import Checkpoints, interruptible
from pretrain.training.callbacks.sample_prompts import SamplePrompt
from pretrain.training.config import SampleConfig
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.loggers.run_log import log_text
from pretrain.training.throughput import Throughput

EARLY_FRACTION = 0.1  # of the run, in which completions are short: the model writes gibberish
EARLY_STEPS = 1000  # the same of a run whose number of steps is unknown
EARLY_TOKENS = 16  # of a completion


class Writer:
    """Samples from a model that is being trained, or from a gathered copy if it is sharded."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, prompts: Sequence[SamplePrompt] = ()) -> None:
        """`prompts` are those of the run's own text, for settings that name none."""
        self.config = config
        self.tokenizer = tokenizer
        self.prompts = [SamplePrompt(text) for text in config.sample.prompts] or list(prompts)

    def sample(self, model: LanguageModule, seed: int) -> str:
        """Return the answers to the prompts, a paragraph each; "" on other ranks than 0. A collective call."""
        model = self.gathered_model(model)
        return "" if rank() > 0 else self.write(model, seed)

    def write(self, model: LanguageModule, seed: int, most_tokens: int | None = None) -> str:
        """Return the answers of an unsharded model to the prompts, a paragraph each of at most so many tokens."""
        was_training = model.training
        try:
            objective = self.config.objective
            language_model = LanguageModel(
                model,
                self.tokenizer,
                fills_masks=objective.fills_masks,
                classifier=objective.classifier,
                regressor=objective.regressor,
                denoises=objective.denoises,
                shift_targets=objective.shift_targets,
                pooling=objective.embedding_pooling,
            )
            with torch.compiler.set_stance("force_eager"):  # do not recompile the blocks for inference
                sample = self.config.sample
                if most_tokens is not None:
                    sample = replace(sample, max_new_tokens=min(most_tokens, sample.max_new_tokens))
                return sample_text(language_model, sample, seed, self.prompts)
        finally:
            model.train(was_training)

    def gathered_model(self, model: LanguageModule) -> LanguageModule:
        """Return the model itself, or if it is sharded, a gathered copy on the CPU of rank 0. A collective call."""
        if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            return model
        copy = build_without_weights(self.config.model, self.config.objective, self.tokenizer)
        add_adapters(copy, self.config.lora)
        if rank() == 0:
            allocate(copy, "cpu", lambda: build(self.config.model, self.config.objective, self.tokenizer))
        targets = dict(copy.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters_by_name(model).items():
                value = full_tensor(parameter)
                if rank() == 0:
                    targets[name].copy_(value)
        return copy


class Samples(StepCallback):
    """Writes samples to the loggers every n steps, from random generators of its own. A signal ends that at once."""

    def __init__(self, writer: Writer, throughput: Throughput, checkpoints: Checkpoints, tag: str = "samples") -> None:
        self.tag = tag
        self.writer = writer
        self.throughput = throughput
        self.checkpoints = checkpoints
        self._sampled_at = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the step of the start: an earlier one has sampled it, or nothing is trained yet."""
        self._sampled_at = trainer.global_step

    def on_step_end(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Sample every n steps and at the last."""
        every, step = self.writer.config.sample.every_n_steps, trainer.global_step
        if step == trainer.max_steps or (every and step % every == 0):
            with self.throughput.paused("samples"):
                self._sample(trainer, module, EARLY_TOKENS if is_early(step, trainer.max_steps) else None)
                self.checkpoints.agree_and_stop_if_asked(trainer, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sample the last step of a run that a callback has ended before its length."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.global_step != self._sampled_at:
            self._sample(trainer, pl_module, None)

    def _sample(self, trainer: L.Trainer, module: TrainingModule, most_tokens: int | None) -> None:
        """Write a sample of this step, on rank 0. A collective call."""
        step = self._sampled_at = trainer.global_step
        gathered = self.writer.gathered_model(module.model_with_loss.model)
        if rank() == 0:
            text = interruptible(module, lambda: self.writer.write(gathered, seed=step, most_tokens=most_tokens))
            log_text(trainer.loggers, self.tag, text or "", step)


def is_early(step: int, max_steps: int) -> bool:
    """Return whether a step belongs to the beginning of a run; `max_steps` is -1 if unknown."""
    return step < (EARLY_STEPS if max_steps < 0 else EARLY_FRACTION * max_steps)


def sample_text(language_model: LanguageModel, config: SampleConfig, seed: int, prompts: Sequence[SamplePrompt]) -> str:
    """Return completions, filled masks or labels of the prompts, a paragraph each."""
    return "\n\n".join(_answer(language_model, prompt, config, seed) for prompt in prompts)


def _answer(language_model: LanguageModel, prompt: SamplePrompt, config: SampleConfig, seed: int) -> str:
    """Return the answer to a prompt, or the reason if the model cannot take it: no prompt ends a training run.

    Weights that have diverged give a reason too: what such a run does next is its own setting.
    """
    try:
        if language_model.labels:
            return _classified(language_model, prompt)
        if language_model.regressor is not None:
            return f"{prompt.text}\n    {language_model.regress(prompt.text):.4g}{_truth(prompt)}"
        if "[MASK]" in prompt.text or not language_model.completes:
            return _filled(language_model, prompt)
        return _completed(language_model, prompt.text, config, seed)
    except (ConfigError, DivergenceError) as error:
        return f"{prompt.text}\n    (no sample: {error})"


def _completed(language_model: LanguageModel, prompt: str, config: SampleConfig, seed: int) -> str:
    limit = language_model.model.config.context_length - 1 - len(language_model.tokenizer.encode_prompt(prompt))
    options: GenerationOptions = {
        "max_new_tokens": max(1, min(config.max_new_tokens, limit)),
        "temperature": config.temperature,
        "top_k": config.top_k or None,
        "seed": seed,
    }
    if language_model.causal:
        options["repetition_penalty"] = config.repetition_penalty
    return language_model.generate(prompt, **options)


def _classified(language_model: LanguageModel, prompt: SamplePrompt) -> str:
    probabilities = language_model.classify(prompt.text)
    best = sorted(probabilities, key=lambda label: -probabilities[label])[:5]
    answer = "   ".join(f"{label!r} {probabilities[label]:.1%}" for label in best)
    return f"{prompt.text}\n    {answer}{_truth(prompt)}"


def _filled(language_model: LanguageModel, prompt: SamplePrompt) -> str:
    if language_model.denoises:  # without chance, so that the samples of two steps can be compared
        answer = language_model.fill(prompt.text, temperature=0, order="confidence")
        return f"{prompt.text}\n    {answer}{_truth(prompt)}"
    masks = language_model.predict_mask(prompt.text)
    answers = ["   ".join(f"{a.token.strip() or a.token!r} {a.probability:.1%}" for a in mask) for mask in masks]
    return "\n    ".join([prompt.text, *answers]) + _truth(prompt)


def _truth(prompt: SamplePrompt) -> str:
    return f"   (the document has {prompt.truth!r})" if prompt.truth else ""
