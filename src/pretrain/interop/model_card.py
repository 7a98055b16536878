"""README.md of an exported model: architecture, provenance, use."""

from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.data.sources.source import printable


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

    def __str__(self) -> str:
        """Return the page as Markdown with the header that the Hugging Face hub reads.

        Source of the header: https://huggingface.co/docs/hub/model-cards.
        """
        tasks = {"AutoModelForCausalLM": "text-generation", "AutoModelForMaskedLM": "fill-mask"}
        header = ["library_name: transformers", f"pipeline_tag: {tasks.get(self.auto_class, 'feature-extraction')}"]
        header += [f"license: {_plain(self.license)}"] if self.license else []
        lines = ["---", *header, "tags:", "- pretrain", "---", "", f"# {_plain(self.title)}", ""]
        origin = (
            "trained with `pretrain`. A base model: it completes text like its training data. It is not tuned to "
            "follow instructions or to be safe."
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
        if self.scores:
            lines += ["", "## Validation at the end of training", "", *_table(self.scores)]
        license_line = f"Weights: {_plain(self.license) if self.license else 'not stated'}."
        lines += ["", "## License", "", f"{license_line} The license of the data, if known, is in the table above."]
        return "\n".join(lines) + "\n"


def _table(rows: Mapping[str, object]) -> list[str]:
    cells = [(name, f"{value:,.4f}" if isinstance(value, float) else _plain(value)) for name, value in rows.items()]
    return ["| | |", "|---|---|", *(f"| {_plain(name)} | {value} |" for name, value in cells)]


def _plain(value: object) -> str:
    """Return text escaped for Markdown."""
    return printable(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
