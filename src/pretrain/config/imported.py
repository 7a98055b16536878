"""model=imported: shape, tokenizer and objective of a model that was trained before, as words of the command line."""

from collections.abc import Iterator
from typing import Any

from pretrain.config.overrides import quote
from pretrain.config.serialize import to_dict
from pretrain.errors import ConfigError, shown

IMPORTED = "imported"  # the preset of a model whose shape is that of the one in init_from


def words_of_imported(tree: Any, chosen: dict[str, str], overrides: list[str]) -> list[str]:
    """Return the words that stand for model=imported: shape, tokenizer and objective of the model in `init_from`."""
    own_tokenizer = chosen["tokenizer"] != "pretrained"
    if tree.resume and (tree.resume != "auto" or _finds_run(tree)):  # the run resumed knows
        return [] if own_tokenizer else ["tokenizer.path=."]
    if not tree.init_from:
        raise ConfigError(
            f"model={IMPORTED} takes shape and tokenizer of the model that init_from names, and init_from is not "
            "given. Add init_from=<a run or a Hugging Face folder>."
        )
    from pretrain.interop.load import open_model  # here: only who imports a model waits for torch

    found = open_model(tree.init_from)
    shape = _flat(to_dict(found.shape), "model.")  # numbers, flags and our own words: nothing else gets through
    words = [f"{key}={shown(value)}" for key, value in shape if key != "model.kind"]
    if chosen["objective"] == "causal" and not any(word.startswith("objective=") for word in overrides):
        words.append(f"objective={found.objective.kind}")
    if chosen["objective"] == "classify":  # a hybrid model reads both ways, too
        reads_both_ways = found.objective.fills_masks or not found.objective.causal
        words.append(f"objective.left_to_right={str(not reads_both_ways).lower()}")
    return words if own_tokenizer else [*words, quote(f"tokenizer.path={found.tokenizer_folder}", "tokenizer.path")]


def _finds_run(tree: Any) -> bool:
    """Whether resume=auto has a run to go on with."""
    from pretrain.checkpoint.read import run_meant_by_auto  # here, as for `open_model`

    return run_meant_by_auto(tree.paths.run_dir, tree.paths.logs_dir, tree.name) is not None


def _flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting of a record by its full name."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
