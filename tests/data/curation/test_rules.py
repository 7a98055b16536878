"""Each rule removes beyond its threshold and not at it; values equal those that plain loops compute."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pretrain.data.curation.config import C4Rules, FineWebRules, GopherRules, LicensesConfig, RulesConfig, Unknown
from pretrain.data.curation.languages import check_thresholds, for_language, source_rules
from pretrain.data.curation.licenses import LicenseSet
from pretrain.data.curation.rules import KEPT, RULE_NAMES, STOP_WORDS, decide, may_be_used, measuring, rules_of
from pretrain.data.curation.statistics import REPEATED_SIZES, TOP_SIZES, WordGrams, measure
from pretrain.data.curation.web.config import LanguageConfig
from pretrain.errors import ConfigError


def removed_by(text: str, config: RulesConfig, licensed: bool = True) -> str | None:
    """Return the rule that removes a text first."""
    how = measuring(config, STOP_WORDS)
    values, _ = measure(text, how)
    columns = {name: np.array([value]) for name, value in zip(how.names(), values, strict=True)}
    columns["characters"] = np.array([float(len(text))])
    first = int(decide(rules_of(config), columns, np.array([licensed])).first[0])
    return None if first == KEPT else RULE_NAMES[first]


def gopher(**settings: float) -> RulesConfig:
    return RulesConfig(gopher=GopherRules(**settings))  # type: ignore[arg-type]


TEN = "one two three four five six seven eight nine ten"  # 48 characters
LINE = "a line of forty characters with an end ."  # 40 characters
EDGES = {  # rules, a text at the threshold, a text beyond it, the rule
    "olmo3.characters": (RulesConfig(min_characters=48), TEN, TEN[1:]),
    "few words": (gopher(min_words=10), f"{TEN}.", TEN.replace("ten", "!")),
    "many words": (gopher(max_words=10), f"{TEN}...", f"{TEN} more"),
    "short words": (gopher(min_word_length=3.0), "one two three at", "one two at"),
    "long words": (gopher(max_word_length=4.0), "four and fiver .", "four fiver ."),
    "gopher.hash": (gopher(max_hashes=0.1), "# one two three four five six seven eight nine", "# one two"),
    "gopher.ellipsis": (gopher(max_ellipses=0.1), "one two three four five six seven eight nine ...", "one two …"),
    "gopher.bullets": (gopher(max_bullet_lines=0.5), "- a\nb\n• c\nd", "- a\n - b\nc"),
    "gopher.line_ellipsis": (gopher(max_ellipsis_lines=0.5), "a...\nb", "a... \nb…\nc"),
    "gopher.alpha": (gopher(min_alphabetic_words=0.8), "a b c d 5", "a b c 4 5"),
    "gopher.stop_words": (gopher(min_stop_words=2), "the cat and the dog", "the cat, the dog"),
    "gopher.dup_lines": (gopher(max_duplicate_lines=0.25), "a\nb\nc\nc", "a\nc\n\nc"),
    "gopher.dup_paragraphs": (gopher(max_duplicate_paragraphs=0.25), "a\n\nb\n\nc\n\n\nc", "a\n\nc\n\nc"),
    "gopher.dup_line_characters": (gopher(max_duplicate_line_characters=0.4), "aaaa\n\naaaa", "aaaaa\naaaaa"),
    "gopher.dup_paragraph_characters": (
        gopher(max_duplicate_paragraph_characters=0.4), "aaaaaa\n\naaaaaaa\n\naaaaaaa", "aaaaaaaaa\n\naaaaaaaaa"
    ),
    "gopher.top_2": (gopher(max_top_2_gram=0.6), "a b a b c", "a b a b"),  # 2 x "a b" of 9 and 7 characters: .67, .86
    "gopher.top_3": (gopher(max_top_3_gram=0.5), "a b c d e", "a b c"),
    "gopher.top_4": (gopher(max_top_4_gram=0.7), "a b c d e", "a b c d"),
    **{
        f"gopher.dup_{n}": (
            gopher(**{f"max_repeated_{n}_grams": 0.25}), f"{' '.join('abcdefghij'[:n] * 2)} ",
            " ".join("abcdefghij"[:n] * 2),
        )  # n of 4n and of 4n - 1 characters
        for n in REPEATED_SIZES
    },
    "c4.lorem": (
        RulesConfig(c4=C4Rules(lorem_ipsum=True)), f"{LINE}\nLorem at ipsum is.", f"{LINE}\nSo LOREM IPSUM is."
    ),
    "c4.curly": (RulesConfig(c4=C4Rules(curly_bracket=True)), f"{LINE}\n{{", f"{LINE}\nThis is a {{ sign."),
    "c4.sentences": (RulesConfig(c4=C4Rules(min_sentences=2)), "So it is. And so on.", "So it is. And so on"),
    "c4.lines": (RulesConfig(c4=C4Rules(lines=True)), "Three words here.", "Two words."),
    "fineweb.line_end": (RulesConfig(fineweb=FineWebRules(min_line_ends=0.5)), "a.\nb", "a.\nb\n\nc"),
    "fineweb.short_lines": (
        RulesConfig(fineweb=FineWebRules(max_short_lines=0.5)), f"{'x' * 30}\n{'y' * 31}", f"{'x' * 30}\n{'y' * 30}"
    ),
    "fineweb.dup_characters": (
        RulesConfig(fineweb=FineWebRules(max_repeated_line_characters=0.25)), "aa\nbbbb\naa", "aa\nbbb\naa"
    ),
    "personal_data.spans": (RulesConfig(max_personal_data=1), "a@example.org", "a@example.org b@example.org"),
    "fineweb.newlines": (RulesConfig(fineweb=FineWebRules(max_newlines=0.5)), "a b\nc d\n", "a b\nc\n"),
}  # fmt: skip
NOT_BY_TEXT = {"license", "language.kept", "language.score", "quality.score", "quality.bits_per_byte", "toxicity.score"}
NAMES = {
    "few words": "gopher.words", "many words": "gopher.words", "short words": "gopher.word_length",
    "long words": "gopher.word_length",
}  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_a_rule_removes_beyond_its_threshold(name: str) -> None:
    config, at, beyond = EDGES[name]
    if name == "gopher.top_2":
        config = gopher(max_top_2_gram=6 / 9)
    elif name == "gopher.top_3":
        config = gopher(max_top_3_gram=5 / 9)
    elif name == "gopher.top_4":
        config = gopher(max_top_4_gram=7 / 9)
    assert removed_by(at, config) is None
    assert removed_by(beyond, config) == NAMES.get(name, name)
    assert removed_by(beyond, RulesConfig()) is None


def test_every_rule_is_tried_at_its_edge() -> None:
    assert {NAMES.get(name, name) for name in EDGES} | NOT_BY_TEXT == set(RULE_NAMES)


def test_language_rules_come_before_those_of_texts() -> None:
    config = RulesConfig(min_characters=2)
    values = {
        "language_is_kept": np.array([1.0, 0.0, 1.0, 1.0, np.nan]),
        "language_score": np.array([0.5, 0.9, 0.4999, 0.9, np.nan]),
        "characters": np.array([9.0, 1.0, 1.0, 1.0, 9.0]),
    }  # fmt: skip
    found = decide(rules_of(config, 0.5), values, np.ones(5, bool))
    names = [None if each == KEPT else RULE_NAMES[each] for each in found.first]
    assert names == [None, "language.kept", "language.score", "olmo3.characters", None]
    assert decide(rules_of(config), values, np.ones(5, bool)).first.tolist().count(KEPT) == 2  # nothing was detected


def test_the_license_is_the_first_reason() -> None:
    assert removed_by("x", RulesConfig(min_characters=2), licensed=False) == "license"


@pytest.mark.parametrize(
    ("text", "rule"), [("This { is it.\nLorem ipsum is.", "c4.curly"), ("Lorem ipsum is { it.", "c4.lorem")]
)
def test_the_earlier_of_two_signs_is_named(text: str, rule: str) -> None:
    config = RulesConfig(c4=C4Rules(lorem_ipsum=True, curly_bracket=True))
    assert removed_by(text, config) == rule
    if rule == "c4.curly":
        assert removed_by(text, RulesConfig(c4=replace(config.c4, curly_bracket=False))) == "c4.lorem"


def commonest(words: list[str], n: int) -> int:
    grams = [" ".join(words[place : place + n]) for place in range(len(words) - n + 1)]
    return max(
        ((count, len(gram) * count) for gram, count in Counter(grams).items()), key=lambda each: each[0], default=(0, 0)
    )[1]


def repeated(words: list[str], n: int) -> int:
    known, place, characters = set[str](), 0, 0
    while place + n <= len(words):
        gram = "".join(words[place : place + n])
        if gram in known:
            characters, place = characters + len(gram), place + n
        else:
            known.add(gram)
            place += 1
    return characters


def test_n_grams_are_those_of_plain_loops() -> None:
    rng = random.Random(0)
    for size in [0, 1, 2, 5, 9, *(rng.randrange(400) for _ in range(150))]:
        vocabulary = ["a", "aa", "b", "ab", "é", "字", "😀", "longer", *map(str, range(rng.choice([1, 5, 50])))]
        words = [rng.choice(vocabulary) for _ in range(size)]
        grams = WordGrams(words)
        assert [grams.commonest(n) for n in TOP_SIZES] == [commonest(words, n) for n in TOP_SIZES]
        assert [grams.repeated(n) for n in REPEATED_SIZES] == [repeated(words, n) for n in REPEATED_SIZES]


def test_c4_keeps_its_lines_and_no_others() -> None:
    text = f"{LINE[:-1]}\nNo end here\nToo short.\nEnds with dots...\n{'x' * 1001} is it.\nWe use Javascript here.\n"
    text += "See our Privacy Policy now.\n  It says so.[12] Really.[citation needed]  "
    config = RulesConfig(c4=C4Rules(lines=True, max_word_length=1000))
    _, written = measure(f'{text}\nA line that ends in a quote"', measuring(config, ()))
    assert written == 'It says so. Really.\nA line that ends in a quote"'


def test_c4_counts_the_lines_as_set_where_it_writes_all() -> None:
    text = "One line of a\nwrapped text that\nends here. So it is.\nYes."
    for rules, sentences in ((C4Rules(), 2.0), (C4Rules(terminal_punctuation=False, min_words_per_line=1), 5.0)):
        how = measuring(RulesConfig(c4=replace(rules, min_sentences=1)), ())
        values, written = measure(text, how)
        assert written == text
        assert values[how.names().index("sentences")] == sentences
        lines = measuring(RulesConfig(c4=replace(rules, min_sentences=1, lines=True)), ())
        assert measure(text, lines)[0] == values


def test_counts_say_first_would_and_alone() -> None:
    config = gopher(min_words=3, min_stop_words=1)
    how = measuring(config, STOP_WORDS)
    texts = ["a b", "the b", "a b c", "the b c"]
    rows = np.array([measure(text, how)[0] for text in texts])
    columns = {name: rows[:, n] for n, name in enumerate(how.names())} | {"characters": np.ones(4)}
    found = decide(rules_of(config), columns, np.ones(4, bool)).counts(np.array([3, 5, 5, 7]))
    assert found == {
        "gopher.words": {"first": 2, "would": 2, "alone": 1, "characters": 8},
        "gopher.stop_words": {"first": 1, "would": 2, "alone": 1, "characters": 5},
    }


@pytest.mark.parametrize(
    ("allow", "deny", "unknown", "kept"),
    [
        (LicenseSet.any, [], Unknown.keep, [True, True, True, True, True]),
        (LicenseSet.any, ["cc-by-4.0"], Unknown.drop, [True, False, True, True, False]),
        (LicenseSet.open, [], Unknown.drop, [True, True, False, True, False]),
        (LicenseSet.public_domain, [], Unknown.keep, [True, False, False, True, True]),
    ],
)
def test_licenses_that_may_be_used(allow: LicenseSet, deny: list[str], unknown: Unknown, kept: list[bool]) -> None:
    names = ["CC0-1.0", "CC-BY-4.0", "CC-BY-NC-4.0", "CC0-1.0 OR CC-BY-4.0", "unknown"]
    assert may_be_used(LicensesConfig(allow, deny, unknown), names).tolist() == kept


def test_thresholds_are_those_of_the_language() -> None:
    config = RulesConfig(gopher=GopherRules(max_word_length=10.0, min_stop_words=2), by_language=True)
    key = "sources.web.language"
    german = for_language(config, key, "de")
    assert (german.rules.gopher.max_word_length, german.rules.gopher.min_word_length) == (15.0, None)  # null stays
    assert "und" in german.stop_words
    assert for_language(config, key, "en").rules == config
    plain = replace(config, by_language=False)
    assert for_language(plain, key, "zh").rules.gopher == GopherRules()  # no words without spaces
    with pytest.raises(ConfigError, match=r"sources\.web\.language=null has no thresholds .* or rules=prose"):
        for_language(config, key, None)
    with pytest.raises(ConfigError, match=r"sources\.web\.language=cy has no stop words here.*rules=prose"):
        for_language(plain, key, "cy")
    own = {"cy": {"max_word_length": 12, "stop_words": ["yn", "y"]}}
    welsh = for_language(config, key, "cy", own)
    assert (welsh.rules.gopher.max_word_length, welsh.stop_words) == (12.0, ("yn", "y"))


def test_languages_that_are_detected() -> None:
    config = RulesConfig(gopher=GopherRules(max_word_length=10.0, min_stop_words=2), by_language=True)
    every = source_rules(config, "web", None, LanguageConfig(detect=True, thresholds={"cy": {"stop_words": ["yn"]}}))
    assert {"en", "de", "cy", "uk"} <= (every.kept or set())  # others have no thresholds, and are not kept
    assert "zh" not in (every.kept or {"zh"})
    assert every.of("de").rules.gopher.max_word_length == 15.0
    assert every.of("xx") == every.default
    some = source_rules(
        config, "web", None, LanguageConfig(detect=True, keep=["de"], thresholds={"de": {"min_score": 0.9}})
    )
    assert (some.kept, some.of("de").min_score, some.default.min_score) == (frozenset(["de"]), 0.9, 0.65)
    plain = replace(config, by_language=False)
    assert source_rules(plain, "web", None, LanguageConfig(detect=True)).kept is None  # all
    stated = source_rules(plain, "web", "en", LanguageConfig(detect=True))
    assert (stated.by_language, stated.default.min_score) == ({}, None)
    with pytest.raises(ConfigError, match=r"language\.keep=cy has no thresholds in rules\.by_language"):
        source_rules(config, "web", None, LanguageConfig(detect=True, keep=["cy"]))
    with pytest.raises(
        ConfigError, match=r"sources\.web\.language=fr is not in language\.keep=\[en\], so that no text"
    ):
        source_rules(plain, "web", "fr", LanguageConfig(detect=True, keep=["en"]))
    lines = replace(plain, c4=C4Rules(lines=True))
    with pytest.raises(ConfigError, match=r"language\.keep=ja has no spaces .*sources\.web\.language=ja"):
        source_rules(lines, "web", None, LanguageConfig(detect=True, keep=["en", "ja"]))
    assert source_rules(plain, "web", None, LanguageConfig(detect=True, keep=["ja"])).of("ja").stop_words == ()
    with pytest.raises(ConfigError, match=r"language\.keep=\[en,de\] needs the language of each text.*detect=true"):
        LanguageConfig(keep=["en", "de"])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"cy": 3}, r"language\.thresholds\.cy=3 is not a mapping of thresholds"),
        ({"cy": {"max_word_lenght": 3}}, r"cy\.max_word_lenght is not a threshold\. Did you mean max_word_length"),
        ({"cy": {"max_word_length": "long"}}, r"cy\.max_word_length=long is no number\. Try 0\.3"),
        ({"cy": {"stop_words": "yn"}}, r"cy\.stop_words=yn is no list of words\. Try \[de, het, een\]"),
    ],
)
def test_thresholds_that_cannot_work(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_thresholds(own)
