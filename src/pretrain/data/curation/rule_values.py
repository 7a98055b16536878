"""What each rule counts, in words: for the report of a corpus and the table of rules in the docs."""

from pretrain.data.curation.rules import LICENSE
from pretrain.data.curation.statistics import REPEATED_SIZES, TOP_SIZES

RULE_VALUES = {
    LICENSE: "whether the license may be used",
    "language.kept": "whether the language that was found is kept, and the rules have thresholds for it",
    "language.score": "probability of the language that was found",
    "olmo3.characters": "characters of the text",
    "gopher.dup_paragraphs": "paragraphs that stood before / paragraphs",
    "gopher.dup_paragraph_characters": "characters of paragraphs that stood before / characters",
    "gopher.dup_lines": "lines that stood before / lines",
    "gopher.dup_line_characters": "characters of lines that stood before / characters",
    **{
        f"gopher.top_{n}": f"characters in all occurrences of the commonest run of {n} words / characters"
        for n in TOP_SIZES
    },
    **{
        f"gopher.dup_{n}": f"characters of runs of {n} words that stood before, none over another / characters"
        for n in REPEATED_SIZES
    },
    "gopher.words": "words that are not punctuation alone",
    "gopher.word_length": "mean characters of those words that are not punctuation alone",
    "gopher.hash": "`#` characters / words",
    "gopher.ellipsis": "`...` and its one-character form / words",
    "gopher.bullets": "lines that begin with a bullet or `-` / lines",
    "gopher.line_ellipsis": "lines that end with an ellipsis / lines",
    "gopher.alpha": "words with a letter / words, punctuation among them",
    "gopher.stop_words": "different stop words of the language that occur",
    "c4.lorem": "whether a line has placeholder text",
    "c4.curly": "whether a line has a curly bracket",
    "c4.sentences": "sentences of the lines that C4 keeps",
    "c4.lines": "characters of the lines that C4 keeps; only they are written",
    "fineweb.line_end": "lines that end with the end of a sentence / lines",
    "fineweb.short_lines": "lines of 30 characters or fewer / lines",
    "fineweb.dup_characters": "characters of lines that stood before / characters without line ends",
    "fineweb.newlines": "line ends / words",
    "personal_data.spans": "pieces of personal data of all kinds",
    "quality.score": "probability that a text is one of the reference, by its words and pairs of words",
    "quality.bits_per_byte": "bits per byte of its beginning under `quality.checkpoint`",
    "toxicity.score": "words in the list of `toxicity.words` / words, or the probability of `toxicity.label`",
}
