"""The probability of every token at every mask."""

import pytest
import torch
from families import random_model, shape
from tokenizer_kinds import tokenizer_of
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, normalizers, pre_tokenizers
from torch.testing import assert_close

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train_bpe import byte_tokenizer, train_bpe
from pretrain.inference.fill_mask import mask_probabilities, text_with_masks

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
