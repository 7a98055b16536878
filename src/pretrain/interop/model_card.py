"""README.md of an exported model: architecture, provenance, use."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pretrain.data.config import DataConfig
from pretrain.data.fine_tuning_config import prompt_templates
from pretrain.data.sources.source import printable
from pretrain.files.records import Count
from pretrain.objectives.config import ObjectiveConfig

LICENSES_SHOWN = 30
_ABOUT = {  # tasks whose figures are easily misread
    "bias": "Percentage of sentence pairs of which the more stereotyping one is more likely under the model; 50 is no "
    "preference; low and high bound its 95 % interval. The pairs are American, some are faulty "
    "(https://aclanthology.org/2021.acl-long.81), and a figure near 50 does not show that the model is harmless.",
    "memorization": "How much of documents that it was trained on the model repeats exactly, beside held-out ones.",
}


@dataclass(frozen=True)
class DocumentCounts:
    """What became of the documents of a source."""

    read: Count
    unusable: dict[str, Count]  # by reason
    removed: dict[str, Count]  # by the first rule that removed them
    exact: Count  # duplicates
    kept: Count
    near: Count = 0  # near-duplicates
    guard: Count = 0  # beside a document of the other split
    paragraphs: Count = 0  # nothing but repeated paragraphs
    contamination: Count = 0  # holding evaluation items
    personal_data: Count = 0  # nothing but personal data
    forgotten: Count = 0  # on request


@dataclass(frozen=True)
class SourceOfText:
    """A source of a curated corpus: its stated license and its documents."""

    license: str
    documents: DocumentCounts
    characters: Count


@dataclass(frozen=True)
class LicenseCounts:
    """Documents and characters under one license."""

    documents: Count
    characters: Count


@dataclass(frozen=True)
class EvaluationSet:
    """How many items of an evaluation set stand in a corpus, by definition."""

    items: Count
    not_checkable: Count
    contaminated: dict[str, Count]


@dataclass(frozen=True)
class Decontamination:
    """The evaluation sets that a corpus was compared with."""

    words: Count
    action: str
    documents: Count  # that hold an item
    sets: dict[str, EvaluationSet]


@dataclass(frozen=True)
class CuratedText:
    """What a checkpoint records of a curated corpus, as curate.py counted it."""

    fingerprint: str
    documents: Count
    characters: Count
    sources: dict[str, SourceOfText]
    licenses: dict[str, LicenseCounts]
    decontamination: Decontamination | None = None  # None: it was compared with no evaluation set


@dataclass(frozen=True)
class ModelCard:
    """Contents of a model card; `str` of it is the page."""

    title: str
    architecture: str
    auto_class: str
    parameters: int
    context_length: int
    license: str | None  # an SPDX name
    trained_here: bool  # False: converted from a Hugging Face folder
    provenance: Mapping[str, object]
    scores: Mapping[str, float]
    corpora: Mapping[str, CuratedText] = field(default_factory=dict)  # by source of the run; a single one is named ""
    purpose: str = ""  # sentences in Markdown, of `purpose_of`
    evaluations: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # figures by task of eval.py

    def __str__(self) -> str:
        """Return the page as Markdown with the header that the Hugging Face hub reads.

        Source of the header: https://huggingface.co/docs/hub/model-cards.
        """
        tasks = {"AutoModelForCausalLM": "text-generation", "AutoModelForMaskedLM": "fill-mask"}
        tasks["AutoModelForSequenceClassification"] = "text-classification"
        header = ["library_name: transformers", f"pipeline_tag: {tasks.get(self.auto_class, 'feature-extraction')}"]
        header += [f"license: {_plain(self.license)}"] if self.license else []
        lines = ["---", *header, "tags:", "- pretrain", "---", "", f"# {_plain(self.title)}", ""]
        origin = (
            f"trained with `pretrain`. {self.purpose}"
            if self.trained_here
            else "converted by `pretrain` from a model trained elsewhere; see the original model's page for its use."
        )
        lines += [
            f"{self.architecture} with {self.parameters:,} parameters and a context of {self.context_length:,} tokens, "
            f"{origin}",
            "", "## Use", "", "```python", f"from transformers import AutoTokenizer, {self.auto_class}", "",
            'tokenizer = AutoTokenizer.from_pretrained("<this folder>")',
            f'model = {self.auto_class}.from_pretrained("<this folder>")', "```", "",
            "## Provenance", "", *_table(self.provenance),
        ]  # fmt: skip
        for name, corpus in self.corpora.items():
            lines += ["", f"## Training data{f' of source {_plain(name)}' if name else ''}", "", *_of_corpus(corpus)]
        if self.scores:
            lines += ["", "## Validation at the end of training", "", *_table(self.scores)]
        for task, figures in self.evaluations.items():
            about = _ABOUT.get(task.partition(" ")[0])
            lines += ["", f"## Scores: {_plain(task)}", "", *_table(figures)]
            lines += ["", about] if about else []
            if any(figure.startswith("clean/") for figure in figures):
                lines += ["", _clean_items(self.corpora)]
        license_line = f"Weights: {_plain(self.license) if self.license else 'not stated'}."
        lines += ["", "## License", "", f"{license_line} The license of the data, if known, is in the tables above."]
        return "\n".join(lines) + "\n"


def purpose_of(objective: ObjectiveConfig, data: DataConfig) -> str:
    """Return what a model is for that was trained with these settings, sentences in Markdown."""
    templates = ["{prompt}".join(each) for each in prompt_templates(data)]
    if any(part.has_messages for part in data.parts().values()):
        tuning = (
            "It was fine-tuned on conversations, in the chat template of its tokenizer. It is not tuned to be safe."
        )
    elif templates:
        written = " or ".join(f'"{_plain(template)}{{response}}"' for template in templates)
        tuning = f"It was fine-tuned to respond to prompts in the template {written}. It is not tuned to be safe."
    else:
        tuning = "It is not tuned to follow instructions or to be safe."
    base = "A base model" if tuning.startswith("It is not") else "A fine-tuned model"
    return f"{_does(objective, base)} {tuning}"


def _does(objective: ObjectiveConfig, base: str) -> str:
    if objective.classifier is not None:
        return f"A classifier of texts into the labels {', '.join(map(_plain, objective.classifier.labels))}."
    if objective.embedding_pooling is not None:
        return "A model of embeddings: it was fine-tuned to give texts that belong together vectors that are alike."
    if objective.denoises:
        return (
            "A masked diffusion model: it fills any share of masks in a text, and writes by filling masks after a "
            "prompt, several at a time, which `pretrain` does and transformers' fill-mask pipeline does not."
        )
    if not objective.causal:
        return f"{base}: it fills masks in texts like its training data."
    if objective.fills_masks:
        return (
            f"{base}: it completes text like its training data. It was also trained to fill masks with attention in "
            "both directions, which `pretrain` does and this class of transformers does not."
        )
    return f"{base}: it completes text like its training data."


def _clean_items(corpora: Mapping[str, CuratedText]) -> str:
    """Return which items the scores on clean ones are of: the definition, and that others count otherwise."""
    lengths = {corpus.decontamination.words for corpus in corpora.values() if corpus.decontamination is not None}
    words = " or ".join(map(str, sorted(lengths))) if lengths else "`decontaminate.words`"
    return (
        f"`clean/` are the items that are clean by the definition of GPT-3: no run of {words} words of them stands in "
        "the curated training data, but for runs that stand in many of its documents, and they are long enough to be "
        "checked. By another definition, such as PaLM's, some of them may count as contaminated."
    )


def _of_corpus(corpus: CuratedText) -> Iterator[str]:
    """Yield the lines about a curated corpus: sources, what was removed and why, licenses."""
    yield (
        f"A curated corpus of {corpus.documents:,} documents and {corpus.characters:,} characters, fingerprint "
        f"`{_plain(corpus.fingerprint)}`."
    )
    yield from (
        "",
        "| source | stated license | documents read | kept | removed, by the first reason |",
        "|---|---|---|---|---|",
    )
    for name, source in corpus.sources.items():
        counts = source.documents
        reasons = {f"unusable: {reason}": count for reason, count in counts.unusable.items()}
        reasons |= counts.removed | {"exact duplicates": counts.exact, "near-duplicates": counts.near}
        reasons |= {"beside the other split": counts.guard, "repeated paragraphs": counts.paragraphs}
        reasons |= {"holding evaluation items": counts.contamination, "personal data alone": counts.personal_data}
        reasons |= {"forgotten on request": counts.forgotten}
        why = ", ".join(f"{_plain(reason)} {count:,}" for reason, count in reasons.items() if count) or "none"
        yield f"| {_plain(name)} | {_plain(source.license)} | {counts.read:,} | {counts.kept:,} | {why} |"
    yield from ("", "| license | documents | characters |", "|---|---|---|")
    ordered = sorted(corpus.licenses.items(), key=lambda item: (-item[1].characters, item[0]))
    for name, license_counts in ordered[:LICENSES_SHOWN]:
        yield f"| {_plain(name)} | {license_counts.documents:,} | {license_counts.characters:,} |"
    if len(ordered) > LICENSES_SHOWN:
        yield f"| {len(ordered) - LICENSES_SHOWN} more | | |"
    yield from _of_sets(corpus.decontamination)
    yield from (
        "",
        "Licenses are as the sources state them. A license of a collection is not always that of each text in it.",
    )


def _of_sets(found: Decontamination | None) -> Iterator[str]:
    """Yield the lines about evaluation sets in the training data."""
    yield ""
    if found is None:
        yield "Contamination by evaluation sets: not checked."
        return
    yield (
        f"Contamination by evaluation sets: {found.documents:,} documents held an item; the rule was to "
        f"{_plain(found.action)} them. Items in what is left, by definition (runs of {found.words} words for "
        "the first two):"
    )
    heads = {
        "gpt_3": "GPT-3: any run", "one_document": "most runs in one document", "palm": "PaLM: 70 % of runs of 8",
        "llama_2_dirty": "Llama 2: dirty", "llama_2_not_clean": "Llama 2: not clean",
    }  # fmt: skip
    yield from (
        "",
        f"| set | items | not checkable | {' | '.join(heads.values())} |",
        f"|---|---|---|{'---|' * len(heads)}",
    )
    for name, each in found.sets.items():
        counts = " | ".join(f"{each.contaminated.get(key, 0):,}" for key in heads)
        yield f"| {_plain(name)} | {each.items:,} | {each.not_checkable:,} | {counts} |"


def _table(rows: Mapping[str, object]) -> list[str]:
    cells = [(name, f"{value:,.4f}" if isinstance(value, float) else _plain(value)) for name, value in rows.items()]
    return ["| | |", "|---|---|", *(f"| {_plain(name)} | {value} |" for name, value in cells)]


def _plain(value: object) -> str:
    """Return text escaped for Markdown."""
    return printable(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
