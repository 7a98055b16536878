"""Settings of the commands that make a corpus and check one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pretrain.config.named_entries import CORPUS_SOURCES, typed_entries
from pretrain.config.preset_folders import config_file, presets
from pretrain.config.setting import Settings, plugins_setting, setting
from pretrain.data.curation.config import SOURCE_KINDS, CurationConfig, RulesConfig, checked_sources
from pretrain.data.curation.rules import rule_record, rules_of
from pretrain.errors import ConfigError, nearest
from pretrain.files.object_storage import refuse_address
from pretrain.training.config import PathsConfig


@dataclass
class CurateConfig(CurationConfig):
    """Raw text to a corpus with a manifest: what was read, what was removed and why, and under which licenses."""

    plugins: list[str] = plugins_setting()
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_address("output", self.output, "Try output=corpus, and copy it when it is done, the manifest last.")
        refuse_address("base", self.base)
        self.sources = checked_sources(typed_entries(CORPUS_SOURCES, self.sources, SOURCE_KINDS))
        self._rules = {
            name: self.rules if source.rules is None else _preset_of_rules(f"sources.{name}.rules", source.rules)
            for name, source in self.sources.items()
        }

        by_checkpoint = (self.quality.checkpoint is not None, "quality.checkpoint=<a run>")
        self._check_scored("min_quality", self.quality.by_example, "quality.reference=<texts to be like>")
        self._check_scored("min_bits_per_byte", *by_checkpoint)
        self._check_scored("max_bits_per_byte", *by_checkpoint)
        self._check_scored("max_toxicity", self.toxicity.is_on, "toxicity.words=<a list of words>")

    def _check_scored(self, rule: str, is_computed: bool, remedy: str) -> None:
        """Raise ConfigError for a rule on a score that is not computed."""
        given = [value for rules in self._rules.values() if (value := getattr(rules, rule)) is not None]
        if given and not is_computed:
            raise ConfigError(
                f"rules.{rule}={given[0]:g} compares a score, and none is computed. Try {remedy}, or rules.{rule}=null."
            )

    def rules_of(self, source: str) -> RulesConfig:
        """Return the rules for one source: those of the preset that it names, else those of all."""
        return self._rules[source]


def _preset_of_rules(key: str, name: str) -> RulesConfig:
    """Return the rules that a preset of configs/rules holds, ours or one of the user's own."""
    known = presets("rules")
    if name not in known:
        raise ConfigError(f"{key}={name} is not a preset of rules. {nearest(name, known)}")
    path = config_file(f"rules/{name}")
    try:
        written: Any = OmegaConf.load(path)
        if "defaults" in written:
            raise ConfigError(f"{path} has a defaults list, which a preset for one source cannot have. Leave it out.")
        rules: RulesConfig = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RulesConfig), written))  # type: ignore[assignment]
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).partition("\n    full_key")[0].split())[:300].rstrip(".")
        raise ConfigError(
            f"{path} cannot be read: {reason}. Write settings of rules, such as min_characters: 150."
        ) from error
    return rules


def preset_with(rules: Mapping[str, Any]) -> str | None:
    """Return the name of the preset that has these rules with these thresholds, as a manifest records them.

    None if there is none. Rules on scores, languages and personal data are in no preset, and not compared. A preset
    of the user's own that cannot be read is passed over: it is not the one that was used.
    """
    wanted = _preset_rules(rules)
    for name in presets("rules"):
        with suppress(ConfigError):
            if _preset_rules(rule_record(rules_of(_preset_of_rules("rules", name)))) == wanted:
                return name
    return None


def _preset_rules(rules: Mapping[str, Any]) -> dict[str, Any]:
    added = ("quality.", "toxicity.", "language.", "personal_data.")
    return {name: rule for name, rule in rules.items() if not name.startswith(added)}


@dataclass
class VerifyConfig(Settings):
    """Check every hash and count of a curated corpus again."""

    path: str = setting(MISSING, "The folder of a corpus that curate wrote.")
    base: str | None = setting(None, "The corpus that it was curated against, to check twins there too; null: none.")
    plugins: list[str] = plugins_setting()
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_address("path", self.path)
        refuse_address("base", self.base)


@dataclass
class ForgetConfig(Settings):
    """Take documents out of a curated corpus, keep them out of later ones, and say which runs read them and when."""

    path: str = setting(MISSING, "The folder of a corpus that curate wrote.")
    id: str | None = setting(None, "Id of a document, or its first digits, 8 or more.", example="9f86d081884c7d65")
    url: str | None = setting(None, "The address of documents.", example="https://example.org/page")
    domain: str | None = setting(
        None, "The host of documents; those below it are forgotten too.", example="example.org"
    )
    text: str | None = setting(None, "The whole text of a document.")
    file: str | None = setting(
        None, "An input file with its source before it, or an origin as outputs name it.", example="web/pages.jsonl"
    )
    dry_run: bool = setting(False, "Say what would be forgotten and who read it, and change nothing.")
    delete_stores: bool = setting(
        False, "Delete cached tokens of the documents too; alone, of all that the corpus has forgotten."
    )
    exports: list[str] = setting(
        default_factory=list,
        about="Folders with exported models or prepared stores, beside paths.logs_dir and paths.cache_dir.",
    )
    plugins: list[str] = plugins_setting()
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_address("path", self.path)
        names = ("id", "url", "domain", "text", "file")
        given = [name for name in names if getattr(self, name) is not None]
        if not given and self.delete_stores:
            return
        if len(given) != 1 or not getattr(self, given[0]):
            raise ConfigError(
                f"one of id=, url=, domain=, text= and file= says what to forget, and there are {len(given)}. "
                "Try domain=example.org dry_run=true."
            )
        if self.id is not None and len(self.id) < 8:
            raise ConfigError(f"id={self.id} has fewer than 8 digits, which may mean many documents. Give more of it.")


@dataclass
class ExplainConfig(Settings):
    """List the rules that removed documents of a curated corpus, or say why single documents were removed."""

    path: str = setting(MISSING, "The folder of a corpus that curate wrote.")
    id: str | None = setting(None, "Id of a document, or its beginning; or give rule.", example="9f86d081884c7d65")
    rule: str | None = setting(
        None, "Show documents that this rule removed, such as near; without it and id, the rules and their counts."
    )
    n: int = setting(5, "Most documents to show.", bounds="[1, inf)", unit="documents")
    characters: int = setting(600, "Characters of each text to print.", bounds="[0, inf)", unit="characters")
    plugins: list[str] = plugins_setting()
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_address("path", self.path)
        if self.id is not None and self.rule:
            raise ConfigError(
                f"id={self.id} and rule={self.rule} both say which documents to explain. Leave one of them out."
            )
