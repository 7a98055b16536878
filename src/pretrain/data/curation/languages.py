"""Stop words and thresholds of languages, and rules that count words where no spaces stand between them.

Thresholds: FineWeb-2 (Penedo et al. 2025, https://arxiv.org/abs/2506.20920), its configurations at commit 05e6729 of
https://github.com/huggingface/fineweb-2. They were fitted to other tokenizers than ours: see docs.
"""

from __future__ import annotations

from dataclasses import replace

from pretrain.data.curation.config import RulesConfig
from pretrain.data.curation.rules import STOP_WORDS
from pretrain.errors import ConfigError

WITHOUT_SPACES = ("zh", "ja", "th", "lo", "km", "my")
_OF_WORDS = ("words", "word_length", "hashes", "ellipses", "alphabetic_words", "stop_words", "gram")  # parts of names

# language: the numbers of _FIELDS
_NUMBERS = {
    "da": "0.305 0.367 0.297 0.232 0.169 0.158 0.147 0.134 0.123 0.112 0.1 0.182 3 11 0.798",
    "de": "0.263 0.169 0.153 0.137 0.141 0.134 0.126 0.117 0.108 0.098 0.0 0.152 0 15 0.774",
    "fr": "0.264 0.161 0.149 0.134 0.15 0.141 0.131 0.121 0.111 0.1 0.1 0.185 2 11 0.812",
    "it": "0.246 0.198 0.156 0.133 0.144 0.136 0.127 0.118 0.109 0.1 0.025 0.2 3 21 0.807",
    "ru": "0.322 0.184 0.164 0.146 0.168 0.156 0.145 0.133 0.121 0.109 0.231 0.139 3 11 0.713",
    "sv": "0.292 0.242 0.195 0.174 0.156 0.147 0.136 0.125 0.116 0.105 0.2 0.135 3 12 0.841",
}
_STOP_WORDS = {
    "en": " ".join(STOP_WORDS),
    "da": "i og af en til er den at som på for med det blev var der fra de han et",
    "de": "der und die in von im den des mit das er dem als wurde für",
    "fr": "de la le et à en l' des du les est d' un une il dans par au",
    "it": "di e il la in a del che è della un per nel l' con da i una",
    "ru": "в и на с года по году из был к не от что за для его как а он также до после",
    "sv": "i och är av en som den med på till att för",
}
_FIELDS = (
    "max_duplicate_lines", "max_top_2_gram", "max_top_3_gram", "max_top_4_gram",
    *(f"max_repeated_{n}_grams" for n in range(5, 11)),
    "min_line_ends", "max_newlines", "min_word_length", "max_word_length", "min_alphabetic_words",
)  # fmt: skip


def for_language(rules: RulesConfig, source: str, language: str | None) -> tuple[RulesConfig, tuple[str, ...]]:
    """Return the rules for texts of one language, and its stop words.

    Where the rules are by language, each that is applied gets the language's threshold. Rules that count words are
    left out for scripts without spaces between words. Raises ConfigError for a language that nothing is known of.
    """
    key = f"sources.{source}.language"
    gopher, fineweb = replace(rules.gopher), replace(rules.fineweb)
    if rules.by_language and language not in (*_NUMBERS, "en"):
        raise ConfigError(
            f"{key}={language or 'null'} has no thresholds in rules.by_language. There are: "
            f"{', '.join(sorted(_NUMBERS))}, en. Give one of these, or others: sources.{source}.rules=prose."
        )
    if language in WITHOUT_SPACES:
        return _without_words(rules), ()
    if rules.gopher.min_stop_words and language is not None and language not in _STOP_WORDS:
        raise ConfigError(
            f"{key}={language} has no stop words here, and rules.gopher.min_stop_words={gopher.min_stop_words} "
            f"counts them. There are: {', '.join(sorted(_STOP_WORDS))}. Try sources.{source}.rules=prose."
        )
    stop_words = tuple(_STOP_WORDS.get(language or "en", "").split())
    if not rules.by_language or language == "en":
        return rules, stop_words
    for name, number in zip(_FIELDS, _NUMBERS[str(language)].split(), strict=True):
        group = fineweb if hasattr(fineweb, name) else gopher
        if getattr(group, name) is not None:
            setattr(group, name, float(number))
    return replace(rules, gopher=gopher, fineweb=fineweb), stop_words


def _without_words(rules: RulesConfig) -> RulesConfig:
    """Return the rules without those in units of words."""
    gopher = replace(rules.gopher)
    for name in vars(gopher):
        if any(part in name for part in _OF_WORDS):
            setattr(gopher, name, None)
    c4 = replace(rules.c4, min_words_per_line=0)
    return replace(rules, gopher=gopher, c4=c4, fineweb=replace(rules.fineweb, max_newlines=None))
