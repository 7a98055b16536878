"""The table of supported architectures in the guide to Hugging Face: `python -m pretrain.interop.families_table`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pretrain.errors import printable, shown
from pretrain.interop.classifiers import CLASSIFIERS
from pretrain.interop.config_json import ConfigJson
from pretrain.interop.families import FAMILIES
from pretrain.interop.family import Family
from pretrain.models.config import TransformerConfig

_EVERYWHERE = {  # settings that every architecture takes as they are, and those without effect on what it computes
    "n_layers", "d_model", "n_heads", "d_ff", "context_length", "norm_eps", "dropout", "attention_dropout", "init_std",
    "global_attention_every", "global_attention_offset", "global_attention_layers",  # told by sliding_window
}  # fmt: skip
_SMALLEST = {"num_hidden_layers": 1, "max_position_embeddings": 600, "sliding_window": 4}


def families_table() -> str:
    """Return the table in Markdown, one row for each architecture."""
    head = ("`model_type`", "class of transformers", "has", "may have", "classifier: `model.classifier_head`, pooling")
    rows = [head, ("---",) * len(head), *map(_row, FAMILIES)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(family: Family) -> tuple[str, ...]:
    usual = TransformerConfig()
    free = list(_free(family))
    fixed = (
        f"{name}={shown(value)}"
        for name, value in family.fixed.items()
        if value != getattr(usual, name) and name not in free
    )
    names = ", ".join(f"`{name}`" for name in filter(None, (family.architecture, family.bare)))
    return f"`{family.model_type}`", names, _code(fixed), _code(free), _classifier(family)


def _free(family: Family) -> Iterator[str]:
    """Yield the settings that an architecture leaves open, with their choices."""
    for key in family.keys:
        if key.ours not in _EVERYWHERE:
            yield key.ours + (f"={_choices(key.kind)}" if isinstance(key.kind, Mapping) else "")
    for group in family.groups:
        yield from (name for name in group.read(ConfigJson(_SMALLEST, "")) if name not in _EVERYWHERE)


def _choices(kind: Mapping[str, Any]) -> str:
    return "/".join(dict.fromkeys(shown(value) for value in kind.values()))


def _classifier(family: Family) -> str:
    found = CLASSIFIERS.get(family.model_type)
    return "none" if found is None else f"`{found.head.name}`, {' or '.join(each.name for each in found.poolings)}"


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in dict.fromkeys(words))


if __name__ == "__main__":
    print(printable(families_table()))
