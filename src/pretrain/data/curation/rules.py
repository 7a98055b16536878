"""Which rule removes a document: values against thresholds, for many documents at once. No text is read.

A rule removes where its value is below `low` or above `high`, both strictly, as in the filters of datatrove 0.10.1 that
`benchmarks/curation_agreement.py` compares it with. A value that is NaN removes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.config.setting import description
from pretrain.data.curation.config import LicensesConfig, RulesConfig, Unknown
from pretrain.data.curation.licenses import UNKNOWN, allows, spdx_name
from pretrain.data.curation.statistics import GROUPS, REPEATED_SIZES, TOP_SIZES, VALUES, C4Lines, Measuring

LICENSE = "license"
LANGUAGE, LANGUAGE_SCORE, IS_KEPT = "language", "language_score", "language_is_kept"
KEPT = -1
# What removes documents that no rule removes, in this order.
EXACT_RULE, NEAR_RULE, GUARD_RULE, PARAGRAPHS_RULE = "exact", "near", "guard", "paragraphs"
CONTAMINATION_RULE, PERSONAL_DATA_RULE, FORGOTTEN_RULE = "contamination", "personal_data", "forgotten"
DUPLICATE_RULES = {
    EXACT_RULE: "exact duplicates", NEAR_RULE: "near-duplicates", GUARD_RULE: "beside the other split",
    PARAGRAPHS_RULE: "nothing but repeated paragraphs", CONTAMINATION_RULE: "holding evaluation items",
    PERSONAL_DATA_RULE: "nothing but personal data", FORGOTTEN_RULE: "forgotten on request",
}  # fmt: skip
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Gopher, section A.1.1

Values = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Rule:
    """A value with its thresholds; None: none on that side."""

    name: str
    value: str
    low: float | None = None
    high: float | None = None

    @property
    def applied(self) -> bool:
        """Whether it can remove anything."""
        return self.low is not None or self.high is not None

    def removes(self, values: Values) -> npt.NDArray[np.bool_]:
        """Return for each document whether this rule alone removes it."""
        value = values[self.value]
        removed = np.zeros(len(value), bool)
        if self.low is not None:
            removed |= value < self.low
        if self.high is not None:
            removed |= value > self.high
        return removed


def rules_of(config: RulesConfig, min_language_score: float | None = None) -> list[Rule]:
    """Return the rules in the order in which they are tried; the first one that removes is the reason.

    `min_language_score` is given where the language of a text was detected.
    """
    gopher, c4, fineweb = config.gopher, config.c4, config.fineweb
    detected = min_language_score is not None
    rules = [
        Rule("language.kept", IS_KEPT, low=1.0 if detected else None),
        Rule("language.score", LANGUAGE_SCORE, low=min_language_score),
        Rule("olmo3.characters", "characters", low=config.min_characters),
        Rule("gopher.dup_paragraphs", "duplicate_paragraphs", high=gopher.max_duplicate_paragraphs),
        Rule("gopher.dup_paragraph_characters", "duplicate_paragraph_characters",
             high=gopher.max_duplicate_paragraph_characters),
        Rule("gopher.dup_lines", "duplicate_lines", high=gopher.max_duplicate_lines),
        Rule("gopher.dup_line_characters", "duplicate_line_characters", high=gopher.max_duplicate_line_characters),
    ]  # fmt: skip
    rules += [Rule(f"gopher.top_{n}", f"top_{n}_gram", high=getattr(gopher, f"max_top_{n}_gram")) for n in TOP_SIZES]
    for n in REPEATED_SIZES:
        rules += [Rule(f"gopher.dup_{n}", f"repeated_{n}_grams", high=getattr(gopher, f"max_repeated_{n}_grams"))]
    return [
        *rules,
        Rule("gopher.words", "words", gopher.min_words, gopher.max_words),
        Rule("gopher.word_length", "word_length", gopher.min_word_length, gopher.max_word_length),
        Rule("gopher.hash", "hashes", high=gopher.max_hashes),
        Rule("gopher.ellipsis", "ellipses", high=gopher.max_ellipses),
        Rule("gopher.bullets", "bullet_lines", high=gopher.max_bullet_lines),
        Rule("gopher.line_ellipsis", "ellipsis_lines", high=gopher.max_ellipsis_lines),
        Rule("gopher.alpha", "alphabetic_words", low=gopher.min_alphabetic_words),
        Rule("gopher.stop_words", "stop_words", low=gopher.min_stop_words),
        Rule("c4.lorem", "lorem_ipsum_line", high=-1.0 if c4.lorem_ipsum else None),
        Rule("c4.curly", "curly_bracket_line", high=-1.0 if c4.curly_bracket else None),
        Rule("c4.sentences", "sentences", low=c4.min_sentences),
        Rule("c4.lines", "characters_left", low=1 if c4.lines else None),
        Rule("fineweb.line_end", "line_ends", low=fineweb.min_line_ends),
        Rule("fineweb.short_lines", "short_lines", high=fineweb.max_short_lines),
        Rule("fineweb.dup_characters", "repeated_line_characters", high=fineweb.max_repeated_line_characters),
        Rule("fineweb.newlines", "newlines", high=fineweb.max_newlines),
        Rule("personal_data.spans", "personal_data", high=config.max_personal_data),
        Rule("quality.score", "quality_score", low=config.min_quality),
        Rule("quality.bits_per_byte", "bits_per_byte", config.min_bits_per_byte, config.max_bits_per_byte),
        Rule("toxicity.score", "toxicity", high=config.max_toxicity),
    ]


RULE_NAMES = (LICENSE, *(rule.name for rule in rules_of(RulesConfig())))
_LOREM, _CURLY = RULE_NAMES.index("c4.lorem"), RULE_NAMES.index("c4.curly")


_LANGUAGE_SETTINGS = {
    "language.kept": {"language.keep": "The language is kept, and the rules know it"},
    "language.score": {"language.min_score": "Least probability of the language"},
}


@cache
def rule_settings() -> dict[str, dict[str, str]]:
    """Return for each rule the settings that apply it, such as gopher.min_words, with what each one says about it."""
    plain = RulesConfig()
    found: dict[str, dict[str, str]] = {name: {} for name in RULE_NAMES[1:]} | _LANGUAGE_SETTINGS
    for part in ("", "gopher", "c4", "fineweb"):
        settings: Any = getattr(plain, part) if part else plain
        for each in fields(settings):
            about = description(type(settings), each.name)
            value = True if getattr(settings, each.name) is False else about.example
            if value is None:
                continue
            changed: Any = replace(settings, **{each.name: value})
            changed = replace(plain, **{part: changed}) if part else changed
            for before, after in zip(rules_of(plain), rules_of(changed), strict=True):
                if before != after:
                    text = about.about.partition("; null")[0].rstrip(".")
                    found[after.name][f"{part}.{each.name}".lstrip(".")] = text
    return found


def measuring(config: RulesConfig, stop_words: Sequence[str]) -> Measuring:
    """Return what must be measured for these rules: the groups of which a rule is applied, and the lines of C4."""
    applied = {rule.value for rule in rules_of(config) if rule.applied}
    groups = tuple(group for group in GROUPS if applied & set(VALUES[group]))
    c4 = config.c4
    lines = C4Lines(c4.terminal_punctuation, c4.min_words_per_line, c4.max_word_length)
    return Measuring(groups, frozenset(stop_words), lines if c4.lines else None, lines)


@dataclass(frozen=True)
class Decisions:
    """What the rules say on documents: which removes first, and which would."""

    first: npt.NDArray[np.int16]  # (n,), number in RULE_NAMES; KEPT: none removes
    mask: npt.NDArray[np.uint64]  # (n,), a bit for each rule that would remove

    def counts(self, characters: npt.NDArray[np.int64]) -> dict[str, dict[str, int]]:
        """Return for each rule how many documents it removes first, would remove, and alone, and their characters."""
        found = {}
        for number, name in enumerate(RULE_NAMES):
            bit = np.uint64(1 << number)
            would = (self.mask & bit) != 0
            if would.any():
                first = self.first == number
                found[name] = {
                    "first": int(first.sum()), "would": int(would.sum()), "alone": int((self.mask == bit).sum()),
                    "characters": int(characters[first].sum()),
                }  # fmt: skip
        return found


def decide(rules: Sequence[Rule], values: Values, licensed: npt.NDArray[np.bool_]) -> Decisions:
    """Return the decisions on documents; `licensed` are those whose license may be used.

    `values` has the characters and what was measured; a rule whose value was not measured is not applied.
    """
    mask = np.where(licensed, 0, 1).astype(np.uint64)
    first = np.where(licensed, KEPT, 0).astype(np.int16)
    for number, rule in enumerate(rules, start=1):
        if rule.applied and rule.value in values:
            removed = rule.removes(values)
            mask |= removed.astype(np.uint64) << np.uint64(number)
            first[removed & (first == KEPT)] = number
    _order_of_lines(first, mask, values)
    return Decisions(first, mask)


def _order_of_lines(first: npt.NDArray[np.int16], mask: npt.NDArray[np.uint64], values: Values) -> None:
    """Name the one of C4's two signs that stands in the earlier line, as reading the lines in order does."""
    if "lorem_ipsum_line" in values:
        earlier = values["curly_bracket_line"] < values["lorem_ipsum_line"]
        has_curly = (mask & np.uint64(1 << _CURLY)) != 0
        first[(first == _LOREM) & has_curly & earlier] = _CURLY


def may_be_used(config: LicensesConfig, license_names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return for each SPDX name or "unknown" whether the settings allow it."""
    denied = {spdx_name(name) for name in config.deny}
    known: dict[str, bool] = {UNKNOWN: config.unknown is Unknown.keep}
    for name in set(license_names) - known.keys():
        alternatives = name.split(" OR ")  # one that may be used is enough
        known[name] = any(allows(config.allow, each) and not denied & set(each.split(" AND ")) for each in alternatives)
    return np.array([known[name] for name in license_names], bool)


def rule_record(rules: Sequence[Rule]) -> dict[str, dict[str, Any]]:
    """Return the applied rules with value and thresholds, as plain JSON."""
    return {rule.name: {"value": rule.value, "low": rule.low, "high": rule.high} for rule in rules if rule.applied}
