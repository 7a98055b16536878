"""The sources of a mixture, from what was written to typed settings, with one sentence where something does not fit."""

from dataclasses import fields, replace
from typing import Any

from omegaconf import OmegaConf

from pretrain.config.named_entries import SOURCES, class_of, fill, mapping_of
from pretrain.config.setting import check, description
from pretrain.data.config import COMMON, MixtureConfig, MixtureSource, errors_of
from pretrain.data.fine_tuning_config import LabeledTextConfig, RelatedTextsConfig
from pretrain.errors import ConfigError

_EXAMPLE = "{novels: {kind: text_files, path: novels.txt, weight: 0.6}, docs: {kind: python_docs, weight: 0.4}}"


_PART = ("weight", "epochs", "validation_fraction")  # settings of a source in a mixture; the rest are the source's own


def typed_sources(mixture: MixtureConfig, kinds: dict[str, type]) -> MixtureConfig:
    """Return the mixture with a MixtureSource for each of its sources; `kinds` are the classes of data settings.

    Sources come in the order of their names, so that a run does not depend on the order in which they were written.
    Raises ConfigError for fewer than two sources, and for a name, key or value that does not fit.
    """
    written = mixture.sources
    if len(written) < 2:
        count = f"names {next(iter(written))} alone" if written else "names no source"
        raise ConfigError(
            f"data.sources {count}, and a mixture needs two or more. "
            f"Try 'data.sources={_EXAMPLE}', or data=text_files for one source."
        )
    typed = replace(mixture, sources={name: _typed(name, written[name], kinds) for name in sorted(written)})
    _check_parts(typed.sources)
    typed.parts()  # raises where a source's validation_fraction cannot be
    return typed


def _typed(name: str, written: Any, kinds: dict[str, type]) -> MixtureSource:
    """Return the settings of one source from its mapping; a MixtureSource is one already."""
    if isinstance(written, MixtureSource):
        return written
    key, settings = f"{SOURCES.key}.{name}", mapping_of(SOURCES, name, written)
    text_class = _class_of(f"{key}.kind", settings.get("kind"), kinds)
    tree = OmegaConf.structured(MixtureSource)
    tree.text = OmegaConf.structured(text_class)
    nodes = {f.name: tree.text for f in fields(text_class) if f.name not in COMMON} | dict.fromkeys(_PART, tree)
    for setting, value in settings.items():
        if setting in COMMON and setting not in nodes:
            raise ConfigError(
                f"{key}.{setting}={value} cannot differ from source to source. Set it for all: data.{setting}={value}."
            )
    fill(key, settings, nodes)
    with errors_of(name):
        typed: MixtureSource = OmegaConf.to_object(tree)  # type: ignore[assignment]
    return typed


def _class_of(key: str, kind: Any, kinds: dict[str, type]) -> type:
    """Return the settings class of a source's kind; raises ConfigError for a kind that no mixture has."""
    chosen = kinds.get(str(kind), object)
    if issubclass(chosen, LabeledTextConfig | RelatedTextsConfig):
        raise ConfigError(
            f"{key}={kind} has {chosen.reads}, and a mixture reads text, pairs and conversations. Try a run of its "
            f"own: data={kind} data.path=<files>."
        )
    others = MixtureConfig | LabeledTextConfig | RelatedTextsConfig
    single = {name: each for name, each in kinds.items() if not issubclass(each, others)}
    if issubclass(chosen, MixtureConfig):
        raise ConfigError(f"{key}={kind} would put a mixture into the mixture. Name its sources beside the others.")
    return class_of(SOURCES, key, kind, single)


def _check_parts(sources: dict[str, MixtureSource]) -> None:
    """Refuse a source without its part of the mixture, and weights beside epochs."""
    for name, source in sources.items():
        key = f"data.sources.{name}"
        if source.weight is None and source.epochs is None:
            raise ConfigError(
                f"{key}.weight has no value, and a source needs a weight or epochs. "
                f"Try {key}.weight=1, or {key}.epochs=1."
            )
        if source.weight is not None and source.epochs is not None:
            raise ConfigError(
                f"{key}.weight={source.weight} and {key}.epochs={source.epochs} say the same in two ways. "
                f"Give only one, such as {key}.weight={source.weight}."
            )
        for setting in ("weight", "epochs"):
            check(f"{key}.{setting}", getattr(source, setting), description(MixtureSource, setting))
    weighed = [name for name, source in sources.items() if source.weight is not None]
    if weighed and len(weighed) < len(sources):
        other = next(name for name in sources if name not in weighed)
        raise ConfigError(
            f"data.sources.{other}.epochs={sources[other].epochs} does not go with data.sources.{weighed[0]}.weight="
            f"{sources[weighed[0]].weight}: all sources have weights, or all have epochs. "
            f"Try data.sources.{other}.weight=1."
        )
