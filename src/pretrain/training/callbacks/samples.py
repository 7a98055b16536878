"""Samples of the model during training: completions, filled masks or labels of prompts, as text in the loggers."""

import lightning as L
import torch
from torch.distributed.tensor import DTensor

from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError
from pretrain.inference.config import GenerationOptions
from pretrain.interop.load import build, build_without_weights
from pretrain.language_model import LanguageModel
from pretrain.launch.rank import rank
from pretrain.models.interface import LanguageModule, allocate
from pretrain.optim.groups import parameters_by_name
from pretrain.parallel.mesh import full_tensor
from pretrain.training.callbacks import StepCallback
from pretrain.training.callbacks.checkpoints import Checkpoints, interruptible
from pretrain.training.config import SampleConfig
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.loggers.run_log import log_text
from pretrain.training.throughput import Throughput

CAUSAL_PROMPTS = ["The", "If you want to", "Return the"]
MASKED_PROMPTS = [
    "The quick [MASK] fox jumps over the lazy dog.",
    "Return the [MASK] of the list.",
    "If the file does not exist, an [MASK] is raised.",
]


class Writer:
    """Samples from a model that is being trained, or from a gathered copy if it is sharded."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer

    def sample(self, model: LanguageModule, seed: int) -> str:
        """Return the answers to the prompts, a paragraph each; "" on other ranks than 0. A collective call."""
        model = self.gathered_model(model)
        return "" if rank() > 0 else self.write(model, seed)

    def write(self, model: LanguageModule, seed: int) -> str:
        """Return the answers of an unsharded model to the prompts, a paragraph each."""
        was_training = model.training
        try:
            objective = self.config.objective
            language_model = LanguageModel(
                model,
                self.tokenizer,
                fills_masks=objective.fills_masks,
                classifier=objective.classifier,
                denoises=objective.denoises,
                shift_targets=objective.shift_targets,
            )
            with torch.compiler.set_stance("force_eager"):  # do not recompile the blocks for inference
                return sample_text(language_model, self.config.sample, seed)
        finally:
            model.train(was_training)

    def gathered_model(self, model: LanguageModule) -> LanguageModule:
        """Return the model itself, or if it is sharded, a gathered copy on the CPU of rank 0. A collective call."""
        if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            return model
        copy = build_without_weights(self.config.model, self.config.objective, self.tokenizer)
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

    def on_step_end(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Sample every n steps and at the last."""
        every, step = self.writer.config.sample.every_n_steps, trainer.global_step
        if step == trainer.max_steps or (every and step % every == 0):
            model = module.model_with_loss.model
            with self.throughput.paused("samples"):
                gathered = self.writer.gathered_model(model)
                if rank() == 0:
                    text = interruptible(module, lambda: self.writer.write(gathered, seed=step))
                    log_text(trainer.loggers, self.tag, text or "", step)
                self.checkpoints.agree_and_stop_if_asked(trainer, module)


def sample_text(language_model: LanguageModel, config: SampleConfig, seed: int) -> str:
    """Return completions, filled masks or labels of the prompts, a paragraph each."""
    if language_model.labels:
        return "\n\n".join(_classified(language_model, prompt) for prompt in config.prompts)
    default = CAUSAL_PROMPTS if language_model.completes else []
    default = default + MASKED_PROMPTS if language_model.fills_masks else default
    return "\n\n".join(_answer(language_model, prompt, config, seed) for prompt in config.prompts or default)


def _answer(language_model: LanguageModel, prompt: str, config: SampleConfig, seed: int) -> str:
    """Return the answer to a prompt, or the reason if the model cannot take it: no prompt ends a training run."""
    try:
        if "[MASK]" in prompt or not language_model.completes:
            return _filled(language_model, prompt)
        return _completed(language_model, prompt, config, seed)
    except ConfigError as error:
        return f"{prompt}\n    (no sample: {error})"


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


def _classified(language_model: LanguageModel, text: str) -> str:
    probabilities = language_model.classify(text)
    best = sorted(probabilities, key=lambda label: -probabilities[label])[:5]
    return f"{text}\n    " + "   ".join(f"{label!r} {probabilities[label]:.1%}" for label in best)


def _filled(language_model: LanguageModel, prompt: str) -> str:
    if language_model.denoises:  # without chance, so that the samples of two steps can be compared
        return f"{prompt}\n    {language_model.fill(prompt, temperature=0, order='confidence')}"
    masks = language_model.predict_mask(prompt)
    answers = ["   ".join(f"{answer.token.strip()!r} {answer.probability:.1%}" for answer in mask) for mask in masks]
    return "\n    ".join([prompt, *answers])
