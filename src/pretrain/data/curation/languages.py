"""Rules for texts of one language: its stop words and thresholds, and rules that count words where no spaces are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pretrain.data.curation.config import RulesConfig
from pretrain.data.curation.language_thresholds import STOP_WORDS, THRESHOLD_SETTINGS, THRESHOLDS
from pretrain.data.curation.rules import STOP_WORDS as ENGLISH_STOP_WORDS
from pretrain.data.curation.rules import Rule, rules_of
from pretrain.data.curation.web.config import LanguageConfig
from pretrain.errors import ConfigError, nearest

ENGLISH = "en"
WITHOUT_SPACES = ("zh", "ja", "th", "lo", "km", "my")
_OF_WORDS = ("words", "word_length", "hashes", "ellipses", "alphabetic_words", "stop_words", "gram")  # parts of names
_STOP_WORDS = {ENGLISH: " ".join(ENGLISH_STOP_WORDS), **STOP_WORDS}
_OWN_STOP_WORDS, _OWN_SCORE = "stop_words", "min_score"


@dataclass(frozen=True)
class LanguageRules:
    """Rules with the stop words that they count."""

    rules: RulesConfig
    stop_words: tuple[str, ...]
    min_score: float | None = None  # least probability of the language, where it is detected


@dataclass(frozen=True)
class SourceRules:
    """The rules of a source: those of texts in any language, and of each language that has its own."""

    default: LanguageRules
    by_language: Mapping[str, LanguageRules]
    kept: frozenset[str] | None  # languages that are kept; None: all

    def of(self, language: str | None) -> LanguageRules:
        """Return the rules for texts of a language; None: of a language that nobody stated or detected."""
        return self.by_language.get(language or "", self.default)

    def with_thresholds(self, **thresholds: float) -> SourceRules:
        """Return the rules with other thresholds, such as min_quality."""

        def changed(own: LanguageRules) -> LanguageRules:
            return replace(own, rules=replace(own.rules, **thresholds))  # type: ignore[arg-type]

        by_language = {language: changed(own) for language, own in self.by_language.items()}
        return replace(self, default=changed(self.default), by_language=by_language)

    def lists(self) -> dict[str, list[Rule]]:
        """Return the rules by language; those of any other language under the empty name."""
        found = {"": self.default, **self.by_language}
        return {language: rules_of(each.rules, each.min_score) for language, each in found.items()}

    def record(self) -> dict[str, Any]:
        """Return the rules as plain JSON, for the stage that decides."""
        plain = {language: [asdict(rule) for rule in rules] for language, rules in self.lists().items()}
        kept = None if self.kept is None else sorted(self.kept)
        return {"rules": plain.pop(""), "rules_of": plain, "kept": kept}


def source_rules(rules: RulesConfig, source: str, language: str | None, config: LanguageConfig) -> SourceRules:
    """Return the rules of a source that states a language or none.

    Where languages are detected and the rules are by language, only languages with thresholds are kept. Raises
    ConfigError for a language that is to be kept, and that the rules know nothing of.
    """
    if language is not None and config.keep and language not in config.keep:
        kept = ",".join(config.keep)
        raise ConfigError(
            f"sources.{source}.language={language} is not in language.keep=[{kept}], so that no text of the source "
            f"would be left. Leave the source out, or try language.keep=[{kept},{language}]."
        )
    if language is not None or not config.detect:
        return SourceRules(for_language(rules, f"sources.{source}.language", language, config.thresholds), {}, None)
    cut = [each for each in config.keep if each in WITHOUT_SPACES]
    if cut and rules.c4.lines:
        raise ConfigError(
            f"language.keep={cut[0]} has no spaces between words, and rules.c4.lines=true keeps lines by their words. "
            f"Give such texts a source of their own, with sources.{source}.language={cut[0]}, or try "
            "rules.c4.lines=false."
        )
    known = set(THRESHOLDS) | {ENGLISH} | set(config.thresholds)
    if not rules.by_language:
        known |= set(STOP_WORDS) | set(WITHOUT_SPACES)
    languages = config.keep or sorted(known)
    by_language = {
        each: replace(for_language(rules, "language.keep", each, config.thresholds), min_score=_score(config, each))
        for each in languages
    }
    default = replace(by_language.get(ENGLISH) or LanguageRules(rules, ENGLISH_STOP_WORDS), min_score=config.min_score)
    every = not config.keep and not rules.by_language
    return SourceRules(default, by_language, None if every else frozenset(languages))


def _score(config: LanguageConfig, language: str) -> float:
    return float(config.thresholds.get(language, {}).get(_OWN_SCORE, config.min_score))


def check_thresholds(thresholds: Mapping[str, Any]) -> None:
    """Raise ConfigError for thresholds of languages with an unknown name or a value that is no number."""
    known = [*THRESHOLD_SETTINGS, _OWN_STOP_WORDS, _OWN_SCORE]
    for language, own in thresholds.items():
        key = f"language.thresholds.{language}"
        if not isinstance(own, Mapping):
            raise ConfigError(f"{key}={own} is not a mapping of thresholds. Try '{key}={{max_word_length: 14}}'.")
        for name, value in own.items():
            if name not in known:
                raise ConfigError(f"{key}.{name} is not a threshold. {nearest(str(name), known)}")
            is_list = name == _OWN_STOP_WORDS
            right = isinstance(value, list) if is_list else isinstance(value, int | float)
            if not right or isinstance(value, bool):
                example = "[de, het, een]" if is_list else "0.3"
                raise ConfigError(
                    f"{key}.{name}={value} is no {'list of words' if is_list else 'number'}. Try {example}."
                )


def for_language(
    rules: RulesConfig, key: str, language: str | None, own: Mapping[str, Mapping[str, Any]] | None = None
) -> LanguageRules:
    """Return the rules for texts of one language, and its stop words.

    Where the rules are by language, each that is applied gets the language's threshold; `own` comes before those
    known here. Rules that count words are left out for scripts without spaces between words. Raises ConfigError,
    naming the setting `key`, for a language that nothing is known of.
    """
    given = dict((own or {}).get(language or "", {}))
    has_thresholds = language in THRESHOLDS or language == ENGLISH or bool(given)
    if rules.by_language and not has_thresholds:
        known = ", ".join(sorted({*THRESHOLDS, ENGLISH, *(own or {})}))
        raise ConfigError(
            f"{key}={language or 'null'} has no thresholds in rules.by_language. There are: {known}. Give one of "
            f"these, others as 'language.thresholds.{language or 'xx'}={{max_word_length: 12}}', or rules=prose."
        )
    if language in WITHOUT_SPACES:
        return LanguageRules(_without_words(rules), ())
    stop_words = tuple(given.get(_OWN_STOP_WORDS) or _STOP_WORDS.get(language or ENGLISH, "").split())
    if rules.gopher.min_stop_words and not stop_words:
        raise ConfigError(
            f"{key}={language} has no stop words here, and rules.gopher.min_stop_words={rules.gopher.min_stop_words} "
            f"counts them. There are: {', '.join(sorted(_STOP_WORDS))}. Give them as "
            f"language.thresholds.{language}={{stop_words: [...]}}, or try rules=prose."
        )
    if not rules.by_language or (language == ENGLISH and not given):
        return LanguageRules(rules, stop_words)
    numbers = dict(zip(THRESHOLD_SETTINGS, THRESHOLDS.get(str(language), ()), strict=False))
    return LanguageRules(_with_numbers(rules, {**numbers, **given}), stop_words)


def _with_numbers(rules: RulesConfig, numbers: Mapping[str, Any]) -> RulesConfig:
    """Return the rules with a language's thresholds where they are applied."""
    gopher, fineweb = replace(rules.gopher), replace(rules.fineweb)
    for name in THRESHOLD_SETTINGS:
        group: Any = fineweb if hasattr(fineweb, name) else gopher
        if name in numbers and getattr(group, name) is not None:
            setattr(group, name, float(numbers[name]))
    return replace(rules, gopher=gopher, fineweb=fineweb)


def _without_words(rules: RulesConfig) -> RulesConfig:
    """Return the rules without those in units of words."""
    gopher = replace(rules.gopher)
    for name in vars(gopher):
        if any(part in name for part in _OF_WORDS):
            setattr(gopher, name, None)
    c4 = replace(rules.c4, min_words_per_line=0)
    return replace(rules, gopher=gopher, c4=c4, fineweb=replace(rules.fineweb, max_newlines=None))
