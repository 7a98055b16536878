"""README.md of an exported model: architecture, provenance, use."""

from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.data.sources.source import printable


@dataclass(frozen=True)
class ModelCard:
    """The facts of a model card."""

    title: str
    architecture: str
    auto_class: str
    parameters: int
    context_length: int
    license: str | None  # an SPDX name
    trained_here: bool  # else converted from what others trained
    provenance: Mapping[str, object]
    scores: Mapping[str, float]

    def __str__(self) -> str:
        """Return the page as Markdown with the header that the Hugging Face hub reads.

        Source of the header: https://huggingface.co/docs/hub/model-cards.
        """
        tasks = {"AutoModelForCausalLM": "text-generation", "AutoModelForMaskedLM": "fill-mask"}
        header = ["library_name: transformers", f"pipeline_tag: {tasks.get(self.auto_class, 'feature-extraction')}"]
        header += [f"license: {_plain(self.license)}"] if self.license else []
        lines = ["---", *header, "tags:", "- pretrain", "---", "", f"# {_plain(self.title)}", ""]
        told = (
            "trained with `pretrain`. A base model: it continues or completes text as its data went on, and was not "
            "taught to follow instructions or to be safe."
            if self.trained_here
            else "written by `pretrain` from a model made elsewhere, whose own page says what it is for."
        )
        lines += [
            f"{self.architecture} with {self.parameters:,} parameters and a context of {self.context_length:,} tokens, "
            f"{told}",
            "", "## Use", "", "```python", f"from transformers import AutoTokenizer, {self.auto_class}", "",
            'tokenizer = AutoTokenizer.from_pretrained("<this folder>")',
            f'model = {self.auto_class}.from_pretrained("<this folder>")', "```", "",
            "## Where it comes from", "", *_table(self.provenance),
        ]  # fmt: skip
        if self.scores:
            lines += ["", "## Validation at the end of training", "", *_table(self.scores)]
        license_line = f"Weights: {_plain(self.license)}." if self.license else "Of the weights: not stated."
        lines += ["", "## License", "", f"{license_line} That of the data is in the table above where it is known."]
        return "\n".join(lines) + "\n"


def _table(rows: Mapping[str, object]) -> list[str]:
    cells = [(name, f"{value:,.4f}" if isinstance(value, float) else _plain(value)) for name, value in rows.items()]
    return ["| | |", "|---|---|", *(f"| {_plain(name)} | {value} |" for name, value in cells)]


def _plain(value: object) -> str:
    """Return text that Markdown shows as it stands."""
    return printable(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
