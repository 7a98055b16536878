"""The length of a run and of its warm-up, where what was typed and what a preset brings would both give it."""

from typing import Any

from pretrain.errors import ConfigError, show

OTHER_LENGTHS = ("trainer.max_tokens", "trainer.max_epochs")  # a preset's trainer.max_steps gives way to these
_LENGTHS = ("trainer.max_steps", *OTHER_LENGTHS)
_WARMUPS = ("schedule.warmup_steps", "schedule.warmup_tokens", "schedule.warmup_fraction")
# what brings a length that was chosen for it, or continues from weights, which takes another length
_WITH_LENGTH = {"experiment", "recipe", "init_from", "size"}
_OWN_TEXT = ("text_files", "hugging_face", "curated", "prepared")  # kinds whose data.path is the user's own
DEVICE_PRESETS = ("auto", "cpu", "gpu", "ddp", "fsdp")  # presets of the trainer without a length


def let_typed_lengths_win(tree: Any, overrides: list[str]) -> None:
    """Change the composed `tree` of a run so that a recipe's length and warm-up do not override typed ones.

    Where neither the command line nor an experiment says how long a run on the user's own text is, its
    `trainer.max_steps` becomes null: a rule decides. Raises ConfigError for a warm-up that was typed in two ways.
    """
    if "trainer" not in tree or "schedule" not in tree:
        return
    typed = {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in overrides)}
    _settle_warmup(tree, typed)
    trainer = tree.trainer
    lengths = [key for key in OTHER_LENGTHS if typed.get(key, "null") != "null"]
    if lengths and "trainer.max_steps" not in typed:
        if trainer.max_steps != -1 and "resume" not in typed:
            show(f"trainer.max_steps={trainer.max_steps} was not typed, and gives way to {lengths[0]}.")
        trainer.max_steps = -1
    elif _is_left_open(tree, typed):
        trainer.max_steps = None


def _settle_warmup(tree: Any, typed: dict[str, str]) -> None:
    given = [key for key in _WARMUPS if typed.get(key, "null") != "null"]
    fraction = _WARMUPS[-1]
    if fraction in given and len(given) > 1:
        raise ConfigError(
            f"{given[0]}={typed[given[0]]} and {fraction}={typed[fraction]} give one warm-up in two ways. "
            f"Give only one, such as {fraction}={typed[fraction]}."
        )
    for key in other_warmups(given[0]) if given else ():
        name = key.rpartition(".")[2]
        if key not in typed and name in tree.schedule:
            tree.schedule[name] = None


def other_warmups(key: str) -> list[str]:
    """Return the settings that would override a warm-up given as `key`; none for another setting."""
    return [other for other in _WARMUPS[1:] if other != key] if key in _WARMUPS else []


def _is_left_open(tree: Any, typed: dict[str, str]) -> bool:
    """Return whether nothing typed gives the length of a run on the user's own text, all of it known in advance."""
    if typed.keys() & {*_LENGTHS, *_WITH_LENGTH} or typed.get("trainer", "auto") not in DEVICE_PRESETS:
        return False
    own_text = "data.path" in typed and tree.data.kind in _OWN_TEXT
    return own_text and tree.data.mode.name == "prepare" and typed.get("model") != "imported"
