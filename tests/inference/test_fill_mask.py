"""The probability of every token at every mask."""

from pathlib import Path

import pytest
import torch
from families import random_model, shape
from tokenizer_kinds import tokenizer_of
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, normalizers, pre_tokenizers
from torch.testing import assert_close

from pretrain.commands.generating import generate
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train_bpe import byte_tokenizer, train_bpe
from pretrain.inference.config import GenerateConfig
from pretrain.inference.fill_mask import FilledText, mask_probabilities, text_with_masks
from pretrain.language_model import LanguageModel

VOCAB, MASK = 50, 3
SUPPRESSED = torch.arange(VOCAB) < 4


@pytest.mark.parametrize("family", ["bert", "modern_bert"])
def test_probabilities_at_each_mask_are_those_of_the_whole_text(family: str) -> None:
    model = random_model(shape(family), VOCAB, causal=False)
    tokens = [1, 10, MASK, 11, 12, MASK, MASK, 2]
    found = mask_probabilities(model, tokens, MASK, SUPPRESSED)
    assert found.shape == (3, VOCAB)
    assert found.dtype == torch.float32
    assert not found[:, SUPPRESSED].any()
    assert_close(found.sum(-1), torch.ones(3))
    with torch.no_grad():
        expected = model.head(model(torch.tensor([tokens])))[0, [2, 5, 6], 4:].softmax(-1)
    assert_close(found[:, 4:].clone(), expected)


def word_piece() -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "dog", "jumps", "over", "un", "##able", "."]
    inner = Inner(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens(words[:5])
    return Tokenizer(inner, {"sep_token": "[SEP]", "cls_token": "[CLS]", "mask_token": "[MASK]", "unk_token": "[UNK]"})


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (word_piece(), "the [MASK] jumps over the [MASK]."),
        (word_piece(), "[MASK] fox"),
        (tokenizer_of("unigram"), "the <mask> fox jumps over <mask>"),
        (train_bpe(["the fox jumps over the dog"] * 3, 290), "the [MASK] jumps over the [MASK] dog"),
        (byte_tokenizer(), "th[MASK] fox jumps ov[MASK]r"),
    ],
)
def test_other_masks_keep_the_spaces_around_them(tokenizer: Tokenizer, text: str) -> None:
    expected = text.replace("<mask>", "[MASK]")
    assert text_with_masks(tokenizer, tokenizer.encode_prompt(text)) == expected
    whole = [tokenizer.bos_id, *tokenizer.encode_prompt(text), tokenizer.eos_id]
    assert text_with_masks(tokenizer, whole) == expected  # other special tokens are no text


def test_a_space_of_the_tokenizer_after_a_mask_is_shown() -> None:
    llama = tokenizer_of("llama")
    assert text_with_masks(llama, llama.encode_prompt("the<mask>fox")) == "the[MASK] fox"


BPE = train_bpe(["the fox jumps over the dog", "caf\u00e9 \U0001f98a"] * 3, 290)
CASED = "The  Caf\u00e9 isn't {} (yet) -- U.S.A.\n"  # which WordPiece, uncased, cannot give back


def spliced(tokenizer: Tokenizer, text: str, *tokens: str | None) -> str:
    """Return the text with these tokens of the vocabulary for its masks, in order; None: it stays."""
    mask = tokenizer.token(tokenizer.mask_id or 0)
    ids = tokenizer.encode_prompt(text.replace("[MASK]", mask))
    filled = FilledText(tokenizer, text, [tokenizer.bos_id, *ids, tokenizer.eos_id])
    found = dict(zip(filled.positions, tokens, strict=True))
    return filled.text({place: tokenizer._inner.token_to_id(token) for place, token in found.items() if token})


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        (CASED.format("[MASK]"), ["fox"], CASED.format("fox")),
        ("The [MASK].", ["fox"], "The fox."),
        ("[MASK] Fox", ["the"], "the Fox"),
        ("  [MASK]", ["the"], "  the"),
        ("Un [MASK] Fox", ["##able"], "Unable Fox"),
        ("Un[MASK] Fox", ["##able"], "Unable Fox"),
        ("Un[MASK] Fox", ["dog"], "Un dog Fox"),  # a token that begins a word
        ("(Un-[MASK])", ["dog"], "(Un-dog)"),
        ("A [MASK] B", ["."], "A. B"),
        ("A [MASK] [MASK] B", ["un", "##able"], "A unable B"),
        ("A [MASK][MASK]", ["the", "fox"], "A the fox"),
        ("A\n[MASK]\n[MASK]\nB", ["the", "fox"], "A\nthe\nfox\nB"),
        ("A [MASK] [MASK]!", [None, "fox"], "A [MASK] fox!"),
        ("A [MASK] [MASK]!", ["fox", None], "A fox [MASK]!"),
        ("A [SEP] [MASK]", ["fox"], "A [SEP] fox"),
    ],
)
def test_a_text_around_masks_stays_as_it_was_written(text: str, tokens: list[str | None], expected: str) -> None:
    assert spliced(word_piece(), text, *tokens) == expected


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        (CASED.format("[MASK]"), ["\u0120fox"], CASED.format("fox")),
        ("The [MASK]<|endoftext|> x", ["\u0120fox"], "The fox<|endoftext|> x"),
        ("[MASK]", ["f"], "f"),
        ("The [MASK]x", ["f"], "Thefx"),  # the mask took the space, and the token brought none
        ("The\n[MASK]x", ["f"], "The\nfx"),
        ("The[MASK]", ["\u0120fox"], "The fox"),
        ("caf[MASK][MASK] [MASK]", ["\u00c3", "\u00a9", "\u0120fox"], "caf\u00e9 fox"),  # a character of two bytes
    ],
)
def test_tokens_with_their_space_take_that_before_the_mask(text: str, tokens: list[str], expected: str) -> None:
    assert spliced(BPE, text, *tokens) == expected


def test_a_space_with_a_token_of_its_own_stays_once() -> None:
    assert spliced(byte_tokenizer(), "th [MASK] Fox", "a") == "th a Fox"
    assert spliced(byte_tokenizer(), "th [MASK] Fox", "\u0120") == "th   Fox"
    assert spliced(tokenizer_of("unigram"), "The <mask>[MASK], X", "\u2581fox", "\u2581dog") == "The fox dog, X"
    assert spliced(tokenizer_of("unigram"), "<mask> X", "\u2581fox") == "fox X"


def test_another_spelling_of_the_mask_is_filled_too() -> None:
    tokenizer = word_piece()
    filled = FilledText(tokenizer, "the fox", [2, tokenizer.mask_id or 0, 6, 3])  # more masks than the text spells
    assert filled.text({1: 5}) == "the fox"


@pytest.mark.slow
def test_an_uncased_model_of_words_keeps_the_text(assets: Path) -> None:
    tokenizer = Tokenizer.load(assets / "tokenizers" / "bert-base-uncased")
    assert (
        spliced(tokenizer, "The Caf\u00e9 isn't [MASK] (yet) -- U.S.A.", "open")
        == "The Caf\u00e9 isn't open (yet) -- U.S.A."
    )


def test_generate_fills_a_mask_in_the_spelling_of_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a prompt to continue, which then must not hold a mask."""
    tokenizer = tokenizer_of("unigram")
    model = random_model(shape("bert"), tokenizer.vocab_size, causal=False)
    llm = LanguageModel(model, tokenizer, denoises=True)
    monkeypatch.setattr(LanguageModel, "load", lambda *_, **__: llm)
    monkeypatch.setattr("pretrain.interop.load.chosen_model", lambda *_: tmp_path)
    generate(GenerateConfig(checkpoint=str(tmp_path), prompt="the <mask> fox"))
    written = capsys.readouterr().out
    assert "fox" in written
    assert "mask" not in written.lower()
