"""Write a trained model as a Hugging Face folder: what `src/export.py` runs."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain import __version__
from pretrain.checkpoint.read import EMA
from pretrain.config.scripts import ExportConfig
from pretrain.data.config import DataConfig
from pretrain.data.tokenizers.chat_template import ChatTemplate
from pretrain.errors import CheckpointError, ConfigError, printable
from pretrain.files.records import read_record
from pretrain.files.untrusted_files import read_json
from pretrain.interop.classifiers import classifier_family
from pretrain.interop.comparison import (
    compare,
    compare_tokenizers,
    has_transformers,
    our_outputs,
    random_rows,
    without_padding,
)
from pretrain.interop.families import FAMILIES
from pretrain.interop.family import OBJECTIVE, Family, choose_family
from pretrain.interop.load import ModelFolder, open_model
from pretrain.interop.model_card import CuratedText, ModelCard, purpose_of
from pretrain.interop.peft_folder import write_adapters
from pretrain.interop.sentence_transformers_folder import write_modules
from pretrain.interop.vocab_padding import without_vocab_padding
from pretrain.interop.width_factors import in_standard, standard_shape
from pretrain.interop.write import AddedIds, write_settings, write_tokenizer, write_weights
from pretrain.models.choices import Parametrization
from pretrain.models.config import transformer_of
from pretrain.models.transformer import Transformer
from pretrain.objectives.config import DiffusionConfig
from pretrain.program import command

_DATA_LICENSES = {"python_docs": "Python Software Foundation License 2.0, https://docs.python.org/3/license.html"}


@dataclass(frozen=True)
class Exported:
    """An exported folder; `largest_difference` of logits is None if transformers is not installed.

    `lost_head` tells that the model predicts tokens and its architecture of transformers does not.
    """

    folder: Path
    card: ModelCard
    largest_difference: float | None
    lost_head: bool = False

    def __str__(self) -> str:
        compared = (
            "no: transformers is not installed (pip install transformers, and export again)"
            if self.largest_difference is None
            else f"logits of transformers and ours differ by at most {self.largest_difference:.2g}; the same token ids"
        )
        without_head = (
            "without   its head: transformers has no masked model with model.head=linear. This folder gives hidden "
            "states; the run itself fills masks\n"
        )
        return (
            f"exported  {self.folder}\n"
            f"as        {self.card.architecture}, {self.card.parameters:,} parameters\n"
            f"{without_head if self.lost_head else ''}"
            f"compared  {compared}\n"
            f"load      {self.card.auto_class}.from_pretrained({json.dumps(str(self.folder), ensure_ascii=False)})"
        )


def export_model(config: ExportConfig, path: str | Path) -> Exported:
    """Write the model at `path` to the folder `config.output`, which appears once it is complete and compared.

    Raises ConfigError if the folder exists, or if no architecture of transformers computes the same, naming the
    settings; CheckpointError if the model cannot be read, the folder cannot be written, or transformers computes
    other outputs with it.
    """
    output = Path(config.output)
    if output.exists():
        raise ConfigError(f"output={output} exists already. Choose another folder, or delete it.")
    source = without_vocab_padding(open_model(path, config.weights))
    family = _family_of(source, path, config.family)
    if config.sentence_transformers and source.objective.classifier is not None:
        raise ConfigError(
            f"sentence_transformers=true is for models that embed texts, and {path} is a classifier. "
            "Try sentence_transformers=false."
        )
    evaluations = _evaluations(config, source)
    with _new_folder(output) as temporary:
        card, added_ids = _write(temporary, config, in_standard(source, family), family, evaluations)
        difference = _compare(temporary, source, card, added_ids) if has_transformers() else None
    lost_head = card.auto_class == "AutoModel" and source.has_head and not _embeds(source)
    return Exported(output, card, difference, lost_head)


def export_adapters(config: ExportConfig, path: str | Path) -> str:
    """Write the adapters of the LoRA run at `path` as a folder of PEFT, and return what to do with it.

    Raises ConfigError and CheckpointError as `export_model`, and ConfigError for a run without adapters.
    """
    output, source = Path(config.output), open_model(path, config.weights)
    if source.run is None or source.saved is None or not source.run.lora.is_on:
        raise ConfigError(f"adapters=true writes the adapters of a LoRA run, and {path} has none. Try adapters=false.")
    if source.objective.classifier is not None:
        raise ConfigError(f"adapters=true writes no head, and the classifier {path} has one. Try adapters=false.")
    if source.run.model.transformer and source.run.model.transformer.parametrization is Parametrization.mup:
        raise ConfigError(
            f"adapters=true writes adapters of a base in Hugging Face's formats, and that of {path} has "
            "model.parametrization=mup, whose factors change with the format. Try adapters=false, which merges them."
        )
    family = _family_of(source, path, config.family)
    with _new_folder(output) as temporary:
        base = _without_folders(source.run.init_from) if source.run.init_from else None
        write_adapters(temporary, source.saved, family, source.run.lora, base)
    shown = json.dumps(str(output), ensure_ascii=False)
    return f"exported  {output}\nas        adapters of {base}\nload      PeftModel.from_pretrained(<the base>, {shown})"


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Yield a folder that becomes `output` at the end; ConfigError if that exists, CheckpointError from the disk."""
    if output.exists():
        raise ConfigError(f"output={output} exists already. Choose another folder, or delete it.")
    temporary = output.with_name(f"{output.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(output)
    except OSError as error:
        raise CheckpointError(f"output={output} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _family_of(source: ModelFolder, path: str | Path, name: str) -> Family:
    """Return the family that computes the same as a model; ConfigError if none does."""
    shape = standard_shape(transformer_of(source.shape, "is exported to Hugging Face's formats"))
    if (head := source.objective.regressor) is not None:
        raise ConfigError(
            f"{path} predicts numbers of texts, and transformers has no such head (objective.pooling="
            f"{head.pooling.name}). Export the base model, or use LanguageModel.load(...).regress(text)."
        )
    if source.objective.shift_targets and not source.objective.causal:
        raise ConfigError(
            f"{path} was trained with objective.shift=true: the position before a mask predicts it, and in a masked "
            "model of transformers the mask's own does. Train with objective.shift=false to export."
        )
    family = choose_family(shape, source.objective.causal, FAMILIES, name)
    if isinstance(source.objective, DiffusionConfig) and source.has_head and family.class_of(shape) != family.bare:
        family = replace(family, further={OBJECTIVE: source.objective.kind})
    classifier = source.objective.classifier
    return family if classifier is None else classifier_family(family, shape, classifier, source.tokenizer)


def _evaluations(config: ExportConfig, source: ModelFolder) -> dict[str, dict[str, object]]:
    """Return the figures of the files of the settings by task; ConfigError for one that is not of this model."""
    found = dict[str, dict[str, object]]()
    for each in config.evaluations:
        try:
            record = read_json(Path(each).expanduser())
        except (OSError, ValueError) as error:
            raise ConfigError(f"evaluations={printable(each)} cannot be read: {printable(str(error))}.") from error
        checkpoint = record.get("checkpoint") if isinstance(record, dict) else None
        if not isinstance(checkpoint, str) or Path(checkpoint).resolve() != source.folder.resolve():
            raise ConfigError(
                f"evaluations={printable(each)} has scores of {printable(str(checkpoint))}, and the model is "
                f"{printable(str(source.folder))}. Score it: {command('eval')} checkpoint=... output=scores.json."
            )
        figures: dict[str, object] = {name: value for name, value in record.items() if isinstance(value, int | float)}
        figures.pop("elapsed_s", None)
        task = str(record.get("task", "documents")) + _scored_file(record)
        found[f"{task} ({Path(each).stem})" if task in found else task] = figures
    return found


def _scored_file(record: dict[str, object]) -> str:
    """Return the name of the file that was scored, without the folders of this machine; "" if none is recorded."""
    settings = record.get("settings")
    path = settings.get("path") if isinstance(settings, dict) else None
    return f" on {Path(path).name}" if isinstance(path, str) and path else ""


def _write(
    folder: Path,
    config: ExportConfig,
    source: ModelFolder,
    family: Family,
    evaluations: dict[str, dict[str, object]],
) -> tuple[ModelCard, AddedIds]:
    model, tokenizer = source.without_weights(), source.tokenizer
    assert isinstance(model, Transformer)
    write_weights(folder, family, model, source.values(model), config.max_shard_bytes)
    added_ids = tokenizer.added_ids
    if source.run is not None:  # trained on documents between BOS and EOS
        added_ids = [tokenizer.bos_id], [tokenizer.eos_id] if _is_of_texts(source) else []
    write_settings(folder, family, model, tokenizer, _generation(source, model.vocab_size))
    write_tokenizer(folder, tokenizer, added_ids, model.config)
    if config.sentence_transformers or _embeds(source):
        write_modules(folder, source, added_ids)
    card = ModelCard(
        title=Path(config.output).name,
        architecture=family.class_of(model.config),
        auto_class=family.auto_class(model.config),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        context_length=model.config.context_length,
        license=config.license,
        trained_here=source.run is not None,
        provenance=_provenance(source),
        scores=_scores(source),
        corpora=_corpora(source),
        purpose="" if source.run is None else purpose_of(source.objective, source.run.data),
        evaluations=evaluations,
    )
    (folder / "README.md").write_text(str(card), encoding="utf-8")
    return card, added_ids


def _generation(source: ModelFolder, vocab_size: int) -> dict[str, Any]:
    """Return keys of generation_config.json: what ends a text, and what a run's model was never trained to write."""
    tokenizer = source.tokenizer
    if source.run is None:
        return {}
    ends = [tokenizer.eos_id]
    if any(part.has_messages for part in source.run.data.parts().values()):  # else no turn was learned, nor its end
        ends = list(dict.fromkeys((*ends, ChatTemplate(tokenizer).end_id)))
    suppressed = [*sorted(tokenizer.special_ids - {*ends}), *range(tokenizer.vocab_size, vocab_size)]
    return {"eos_token_id": ends if len(ends) > 1 else ends[0], "suppress_tokens": suppressed or None}


def _embeds(source: ModelFolder) -> bool:
    """Whether the model was trained to embed texts, which it reads between BOS and EOS."""
    return source.objective.embedding_pooling is not None


def _is_of_texts(source: ModelFolder) -> bool:
    """Whether the model reads texts between BOS and EOS."""
    return _embeds(source) or not source.objective.causal or source.objective.classifier is not None


def _compare(folder: Path, source: ModelFolder, card: ModelCard, added_ids: AddedIds) -> float:
    """Return the largest difference of logits; our model is freed before transformers loads its own."""
    model = source.load()
    assert isinstance(model, Transformer)
    rows, classifier = random_rows(model), source.objective.classifier
    if classifier is not None and source.tokenizer.pad_id is not None:
        rows = without_padding(model, rows, source.tokenizer.pad_id)
    pooling = None if classifier is None else classifier.chosen_pooling.value
    ours = our_outputs(model, rows, card.auto_class == "AutoModel", pooling)
    del model
    difference = compare(folder, card.architecture, rows, ours)
    compare_tokenizers(folder, source.tokenizer, added_ids)
    return difference


def _provenance(source: ModelFolder) -> dict[str, object]:
    """Return the origin of the weights, without paths of this machine."""
    if source.run is None:
        return {"converted from": source.folder.name, "written by": f"pretrain {__version__}"}
    run, metadata = source.run, source.metadata
    rows: dict[str, object] = {
        "run": run.name,
        "objective": run.objective.kind,
        "data": _described(run.data),
        "license of the data": _data_license(source),
        "data fingerprint": metadata.get("data_fingerprint"),
        "tokenizer fingerprint": metadata.get("tokenizer_fingerprint"),
        "weights": _averaged(metadata),
        "optimizer steps": f"{metadata['step']:,}",
        "tokens seen": f"{metadata.get('tokens_seen', 0):,}",
        "batch size": f"{run.batch_size:,} rows of {run.model.context_length:,} tokens",
        "optimizer, learning rate": f"{run.optimizer.kind}, {run.optimizer.learning_rate:g}",
        "seed": run.seed,
        "started from": _without_folders(run.init_from) if run.init_from else None,
        "written by": f"pretrain {__version__}; trained with torch {metadata.get('torch')}",
    }
    return {name: value for name, value in rows.items() if value not in (None, "")}


def _averaged(metadata: dict[str, Any]) -> str | None:
    """Return of what the weights are an average; None for those of one step."""
    if metadata.get("weights") == EMA:
        return "moving average"
    steps = metadata.get("average_of")
    return f"mean of the checkpoints of steps {', '.join(map(str, steps))}" if isinstance(steps, list) else None


def _corpora(source: ModelFolder) -> dict[str, CuratedText]:
    """Return what the checkpoint records of curated corpora, by source of the run; a damaged record is an error."""
    recorded = source.metadata.get("corpora") if source.run is not None else None
    if not isinstance(recorded, dict):
        return {}
    try:
        return {name: read_record(CuratedText, found, "corpora of the checkpoint") for name, found in recorded.items()}
    except ValueError as error:
        raise CheckpointError(
            f"{printable(str(source.folder))}: {printable(str(error))}. It was edited. "
            "Take another checkpoint of the run."
        ) from error


def _data_license(source: ModelFolder) -> str:
    assert source.run is not None
    licenses = sorted({name for corpus in _corpora(source).values() for name in corpus.licenses})
    if licenses:
        return ", ".join(licenses[:10]) + (f" and {len(licenses) - 10} more" if len(licenses) > 10 else "")
    return _DATA_LICENSES.get(source.run.data.kind, "not recorded; see its source")


def _described(data: DataConfig) -> str:
    settings: dict[str, Any] = {name: getattr(data, name, None) for name in ("path", "subset", "split", "revision")}
    settings["path"] = _without_folders(settings["path"]) if settings["path"] else None
    return " ".join([data.kind, *(f"{name}={value}" for name, value in settings.items() if value)])


def _without_folders(path: str) -> str:
    """Return a hub name unchanged, or the last name of a path."""
    return path if path.count("/") == 1 and not Path(path).exists() and path[0] not in "/.~" else Path(path).name


@dataclass(frozen=True)
class _Report:
    """The keys of report.json that a model card shows."""

    steps: int
    validation: dict[str, float | None]  # null: no such metric


def _scores(source: ModelFolder) -> dict[str, float]:
    """Return the validation metrics of the run's report, if the run ended with these weights."""
    path = source.folder.parent.parent / "report.json"
    if source.run is None or not path.is_file():
        return {}
    try:
        report = read_record(_Report, read_json(path), "it")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{printable(str(path))} cannot be read: {printable(str(error))}.") from error
    if report.steps != source.metadata["step"]:
        return {}
    found = {name.removeprefix("val/"): value for name, value in report.validation.items() if value is not None}
    ends = tuple(name for name in found if name.endswith("_ema"))
    if source.metadata.get("weights") == EMA:
        return {name.removesuffix("_ema"): found[name] for name in ends}
    return {name: value for name, value in found.items() if name not in ends}
