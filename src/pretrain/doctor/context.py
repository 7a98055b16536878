"""Context of the checks: the user's settings and corpus, and a small run and model made from them."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.data.config import DataConfig, PretrainedTokenizerConfig, TextFilesConfig
from pretrain.data.mixture import MixtureDataset, mixture_dataset
from pretrain.data.prepare import Prepared, prepare
from pretrain.data.token_store.store import Store
from pretrain.doctor.shrink import refuse_fine_tuning, shrink
from pretrain.errors import ConfigError
from pretrain.interop.load import build, build_without_weights
from pretrain.models.config import TransformerConfig
from pretrain.models.interface import LanguageModule, allocate
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import Objective
from pretrain.parallel.device import choose_device
from pretrain.parallel.mesh import load_parameters

LARGE_TOKENS = 20_000_000  # larger corpora are sampled for the small runs, because packing them takes long
SAMPLE_TOKENS = 200_000  # of each source
SAMPLE_DOCUMENTS = 400
NOISE_STD = 0.02


class Context:
    """The user's run; its parts are built on first use, and files are written below `folder`."""

    def __init__(self, config: RunConfig, folder: Path, trained_on: DataConfig | None = None) -> None:
        """`config` is of a run, or of a stage of one with the text `trained_on`, from which a tokenizer learns.

        Raises ConfigError for a run that fine-tunes."""
        refuse_fine_tuning(config)
        self.config = config
        self.folder = folder
        self.trained_on = trained_on

    @cached_property
    def prepared(self) -> Prepared:
        """The user's corpus, prepared as for a run, or read from the cache."""
        cache = Path(self.config.paths.cache_dir)
        return prepare(self.config.data, self.config.tokenizer, cache, trained_on=self.trained_on)

    @cached_property
    def small(self) -> RunConfig:
        """Settings of the small runs: on the user's corpus, or on a sample of it if it is large or streamed.

        Raises ConfigError if the model cannot be scaled down."""
        tokens = sum(store.n_tokens for store in self.prepared.train.values())
        if self.prepared.stream is None and tokens <= LARGE_TOKENS:
            return self._shrunk
        return self._with_sample()

    @cached_property
    def _shrunk(self) -> RunConfig:
        return shrink(self.config)

    @cached_property
    def small_prepared(self) -> Prepared:
        """The corpus of the small runs."""
        if self.small.data.kind == self.config.data.kind and self.small.paths.cache_dir == self.config.paths.cache_dir:
            return self.prepared
        return prepare(self.small.data, self.small.tokenizer, Path(self.small.paths.cache_dir))

    @cached_property
    def device(self) -> torch.device:
        """The device of the user's run; the CPU if this machine has no such device."""
        try:
            return choose_device(self.config.trainer)
        except ConfigError:
            return torch.device("cpu")

    @property
    def shape(self) -> TransformerConfig:
        """The shape of the small model."""
        shape = self.small.model.transformer
        assert shape is not None
        return shape

    def build_objective(self) -> Objective:
        """Return the user's objective, built with the user's tokenizer."""
        return self.config.objective.build(self.small_prepared.tokenizer, self.config.seed)

    @cached_property
    def stream(self) -> MixtureDataset:
        """The training rows of the small runs, in training order."""
        return self.rows_of(self.small_prepared, self.small)

    def rows_of(self, prepared: Prepared, config: RunConfig) -> MixtureDataset:
        """Return the training rows of a corpus as a run with these settings reads them."""
        length, pad_id = config.model.context_length, prepared.tokenizer.padding_id
        return mixture_dataset(prepared.train, config.data, length, pad_id, config.seed)

    def batch(self, n_rows: int) -> Batch:
        """Return a batch of the first `n_rows` rows of the small run, on the CPU."""
        sample_indices = np.arange(n_rows)
        return self.build_objective().collate(self.stream.rows(sample_indices), torch.from_numpy(sample_indices))

    def randomized_model(self) -> LanguageModule:
        """Return the small model on the CPU: initial weights plus noise, so that no weight is 0."""
        model = build_without_weights(self.small.model, self.small.objective, self.small_prepared.tokenizer)
        allocate(model, "cpu", lambda: build(self.small.model, self.small.objective, self.small_prepared.tokenizer))
        generator = torch.Generator().manual_seed(self.config.seed)

        def noisy_value(name: str, size: torch.Size) -> Tensor:
            noise = torch.empty(size).normal_(std=NOISE_STD, generator=generator)
            return self.shape.initial_value(name, size, self.config.seed) + noise

        load_parameters(model, noisy_value)
        return model

    def _with_sample(self) -> RunConfig:
        """Save the first documents of each source and the tokenizer; return the settings of a small run on them."""
        texts, tokenizer = self.folder / "sample", self.prepared.tokenizer
        texts.mkdir(exist_ok=True)
        for number, store in enumerate(self._stores()):
            tokens = 0
            for index in range(min(store.n_documents, SAMPLE_DOCUMENTS)):
                document = store.document(index)
                (texts / f"{number}-{index:04d}.txt").write_text(tokenizer.decode(document), encoding="utf8")
                tokens += document.size
                if tokens > SAMPLE_TOKENS:
                    break
        tokenizer.save(self.folder / "tokenizer")
        data = self._shrunk.data
        return replace(
            self._shrunk,
            data=TextFilesConfig(
                path=str(texts),
                packing=data.packing,
                document_mask=data.document_mask,
                max_validation_rows=data.max_validation_rows,
            ),
            tokenizer=PretrainedTokenizerConfig(path=str(self.folder / "tokenizer")),
            paths=replace(self._shrunk.paths, cache_dir=str(self.folder / "cache")),
        )

    def _stores(self) -> list[Store]:
        stream = self.prepared.stream
        return list(self.prepared.train.values()) if stream is None else [stream.era(0)]
