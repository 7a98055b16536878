"""Write a trained model as a Hugging Face folder: what `src/export.py` runs."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain import __version__
from pretrain.config.scripts import ExportConfig
from pretrain.data.config import DataConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.interop.comparison import compare, compare_tokenizers, our_outputs, random_rows, transformers_is_there
from pretrain.interop.families import FAMILIES
from pretrain.interop.family import Family, choose_family
from pretrain.interop.load import ModelFolder, open_model
from pretrain.interop.model_card import ModelCard
from pretrain.interop.record import read_record
from pretrain.interop.writing import Frame, write_settings, write_tokenizer, write_weights
from pretrain.models.config import TransformerConfig
from pretrain.models.transformer import Transformer
from pretrain.objectives.config import ClassifyConfig

_DATA_LICENSES = {"python_docs": "Python Software Foundation License 2.0, https://docs.python.org/3/license.html"}


@dataclass(frozen=True)
class Exported:
    """What was written, and how far transformers' logits are from ours; none where it is not installed."""

    folder: Path
    card: ModelCard
    largest_difference: float | None

    def __str__(self) -> str:
        compared = (
            "not at all: transformers is not installed, so nothing was compared with the original (pip install "
            "transformers, and export again)"
            if self.largest_difference is None
            else f"logits of transformers and ours differ by at most {self.largest_difference:.2g}; the same token ids"
        )
        return (
            f"exported  {self.folder}\n"
            f"as        {self.card.architecture}, {self.card.parameters:,} parameters\n"
            f"compared  {compared}\n"
            f"load      {self.card.auto_class}.from_pretrained({json.dumps(str(self.folder), ensure_ascii=False)})"
        )


def export_model(config: ExportConfig, path: str | Path) -> Exported:
    """Write the model at `path` to the folder `config.output`, which appears when it is whole and compared.

    Raises ConfigError where the folder is there already, or where no architecture of transformers computes the same as
    the model, naming the settings in the way; CheckpointError where the model cannot be read, the folder not be
    written, or transformers computes something else with it.
    """
    output = Path(config.output)
    if output.exists():
        raise ConfigError(f"output={output} is there already. Choose another folder, or delete it.")
    found = open_model(path)
    if not isinstance(found.shape, TransformerConfig):
        raise ConfigError(f"model.kind={found.shape.kind} is not one that can be written for transformers.")
    if isinstance(found.objective, ClassifyConfig):
        raise ConfigError(
            f"{path} is a classifier, and its head over what objective.pooling={found.objective.pooling.name} gives "
            "has no counterpart in transformers. Export the base, or use LanguageModel.load(...).classify(text)."
        )
    family = choose_family(found.shape, found.objective.causal, FAMILIES, config.family)
    temporary = output.with_name(f"{output.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        card, frame = _write(temporary, config, found, family)
        difference = _compare(temporary, found, card, frame) if transformers_is_there() else None
        temporary.rename(output)
    except OSError as error:
        raise CheckpointError(f"output={output} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(output, card, difference)


def _write(folder: Path, config: ExportConfig, found: ModelFolder, family: Family) -> tuple[ModelCard, Frame]:
    model, tokenizer = found.without_weights(), found.tokenizer
    write_weights(folder, family, model, found.values(model), config.max_shard_bytes)
    frame, suppress_tokens = tokenizer.added_ids, list[int]()
    if found.run is not None:  # as it was trained: documents begin and end, and other special tokens are no text
        frame = [tokenizer.bos_id], [] if found.objective.causal else [tokenizer.eos_id]
        suppress_tokens = sorted(tokenizer.special_ids - {tokenizer.eos_id})
        suppress_tokens += range(tokenizer.vocab_size, model.vocab_size)
    write_settings(folder, family, model, tokenizer, suppress_tokens)
    write_tokenizer(folder, tokenizer, frame, model.config)
    card = _card(Path(config.output).name, found, family, model, config.license)
    (folder / "README.md").write_text(str(card), encoding="utf-8")
    return card, frame


def _compare(folder: Path, found: ModelFolder, card: ModelCard, frame: Frame) -> float:
    """Return the largest difference; our model is gone before the other one comes."""
    model = found.load()
    rows = random_rows(model)
    ours = our_outputs(model, rows, bare=card.auto_class == "AutoModel")
    del model
    difference = compare(folder, card.architecture, rows, ours)
    compare_tokenizers(folder, found.tokenizer, frame)
    return difference


def _card(title: str, found: ModelFolder, family: Family, model: Transformer, license_name: str | None) -> ModelCard:
    return ModelCard(
        title=title,
        architecture=family.class_of(model.config),
        auto_class=family.auto_class(model.config),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        context_length=model.config.context_length,
        license=license_name,
        trained_here=found.run is not None,
        provenance=_provenance(found),
        scores=_scores(found),
    )


def _provenance(found: ModelFolder) -> dict[str, object]:
    """Return where the weights come from, without the names of this machine's folders."""
    if found.run is None:
        return {"converted from": found.folder.name, "written by": f"pretrain {__version__}"}
    run, metadata = found.run, found.metadata
    rows: dict[str, object] = {
        "run": run.name,
        "objective": run.objective.kind,
        "data": _described(run.data),
        "license of the data": _DATA_LICENSES.get(run.data.kind, "not recorded; see its source"),
        "data fingerprint": metadata.get("data_fingerprint"),
        "tokenizer fingerprint": metadata.get("tokenizer_fingerprint"),
        "optimizer steps": f"{metadata['step']:,}",
        "tokens seen": f"{metadata.get('tokens_seen', 0):,}",
        "rows in a step": f"{run.batch_size:,} of {run.model.context_length:,} tokens",
        "optimizer, learning rate": f"{run.optimizer.kind}, {run.optimizer.learning_rate:g}",
        "seed": run.seed,
        "started from": _without_folders(run.init_from) if run.init_from else None,
        "written by": f"pretrain {__version__}; trained with torch {metadata.get('torch')}",
    }
    return {name: value for name, value in rows.items() if value not in (None, "")}


def _described(data: DataConfig) -> str:
    said: dict[str, Any] = {name: getattr(data, name, None) for name in ("path", "subset", "split", "revision")}
    said["path"] = _without_folders(said["path"]) if said["path"] else None
    return " ".join([data.kind, *(f"{name}={value}" for name, value in said.items() if value)])


def _without_folders(path: str) -> str:
    """Return a hub name as it is, of a path only the last name."""
    return path if path.count("/") == 1 and not Path(path).exists() and path[0] not in "/.~" else Path(path).name


def _scores(found: ModelFolder) -> dict[str, float]:
    """Return the figures of the run's report, where it ended with these weights."""
    path = found.folder.parent.parent / "report.json"
    if found.run is None or not path.is_file():
        return {}
    report = read_record(path)
    if report.count("steps") != found.metadata["step"]:
        return {}
    scores = report.section("validation")
    figures = {name.removeprefix("val/"): scores.number(name) for name in scores.values}
    return {name: value for name, value in figures.items() if value is not None}  # null: there was none
