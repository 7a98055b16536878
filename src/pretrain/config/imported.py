"""model=imported: shape, tokenizer and objective of a model that was trained before, as overrides."""

from typing import Any

from pretrain.config.overrides import quote
from pretrain.config.serialize import flat, to_dict
from pretrain.errors import ConfigError, shown
from pretrain.objectives.config import ObjectiveConfig

IMPORTED = "imported"  # the preset of a model whose shape is that of the one in init_from


def imported_overrides(tree: Any, chosen: dict[str, str], overrides: list[str]) -> list[str]:
    """Return the overrides after model=imported: shape, tokenizer and objective of the model in `init_from`."""
    own_tokenizer = chosen["tokenizer"] != "pretrained"
    if tree.resume and (tree.resume != "auto" or _finds_run(tree)):  # the run that is resumed has them
        return [] if own_tokenizer else ["tokenizer.path=."]
    if not tree.init_from:
        raise ConfigError(
            f"model={IMPORTED} takes shape and tokenizer of the model that init_from names, and init_from is not "
            "given. Add init_from=<a run or a Hugging Face folder>."
        )
    from pretrain.interop.load import open_model  # here: loads torch

    found = open_model(tree.init_from, cache=tree.paths.cache_dir)
    shape = flat(to_dict(found.shape), "model.")  # numbers, flags and names of our own enumerations only
    implied = [f"{key}={shown(value)}" for key, value in shape if key != "model.kind"]
    objective = chosen["objective"]
    if objective == "causal" and not any(each.startswith("objective=") for each in overrides):
        objective = found.objective.kind
        implied += [f"objective={objective}", *_settings_of(found.objective)]
    if objective == "diffusion":  # a position goes on to predict what it has learned to: the next token, or its own
        implied.append(f"objective.shift={str(found.objective.shift_targets).lower()}")
    if chosen["objective"] in ("classify", "regress", "contrastive"):  # a hybrid model reads both ways, too
        reads_both_ways = found.objective.fills_masks or not found.objective.causal
        implied.append(f"objective.left_to_right={str(not reads_both_ways).lower()}")
    return implied if own_tokenizer else [*implied, quote(f"tokenizer.path={found.tokenizer_folder}", "tokenizer.path")]


def _settings_of(objective: ObjectiveConfig) -> list[str]:
    """Return the overrides that give an objective these settings, without those that are its kind's defaults."""
    defaults = dict(flat(to_dict(type(objective)())))
    changed = {key: value for key, value in flat(to_dict(objective)) if value != defaults.get(key) and key != "labels"}
    return [f"objective.{key}={shown(value)}" for key, value in changed.items()]


def _finds_run(tree: Any) -> bool:
    """Whether resume=auto has a run to go on with."""
    from pretrain.checkpoint.read import run_meant_by_auto  # here, as for `open_model`

    return run_meant_by_auto(tree.paths.run_dir, tree.paths.logs_dir, tree.name) is not None
