"""Words and sentences by the cases that rules depend on."""

import pytest

from pretrain.data.curation.words import split_sentences, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I don't know John's dog.", "I do n't know John 's dog ."),
        ("They’re here; we’d go", "They ’re here ; we ’d go"),
        ("well-known e-mail: a.b@c.org!", "well - known e - mail : a.b@c.org !"),
        ("See https://x.org/a?b=c.", "See https://x.org/a?b=c ."),
        ("$3.50, 1,000 and 10%", "$ 3.50 , 1,000 and 10 %"),
        ("Mr. Fox of the U.S. left...", "Mr. Fox of the U.S. left ..."),
        ("Wait -- what?!", "Wait -- what ? !"),
        ("naïve Übergröße", "naïve Übergröße"),
        ("हिन्दी में", "हिन्दी में"),  # vowel signs are marks, and belong to their word
        ("中文 text 字", "中 文 text 字"),
        ("\t \n", ""),
    ],
)
def test_words_are_split_as_they_are_counted(text: str, words: str) -> None:
    assert split_words(text) == words.split()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("He met Mr. Fox. It rained!", ["He met Mr. Fox.", "It rained!"]),
        ('"Really?" she said. Yes.', ['"Really?" she said.', "Yes."]),
        ("It cost 3.5 dollars, e.g. here", ["It cost 3.5 dollars, e.g. here"]),
        ("中文。好！", ["中文。", "好！"]),
        ("  ", []),
    ],
)
def test_sentences_end_where_they_end(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences
