"""Small tokenizers of every published kind, trained on a few lines, with special tokens in their models."""

import random
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Inner

from pretrain.data.tokenizers.tokenizer import Tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<mask>"]
ROLES = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token", "mask_token"), SPECIAL, strict=True))
_WORDS = (
    "the", "a", "fox", "dog", "quick", "lazy", "price", "over", "jumps", "old", "new", "and", "number", "document",
    "of", "it's", "12", "345", "naïve", "x", "=", "(", ")", ".", "<", "/", ">", "b",
)  # fmt: skip


SPELLED = " ".join(SPECIAL)


def lines(count: int = 300) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(_WORDS, k=12)) + "." for _ in range(count)]


def _unigram(scheme: str, split: bool) -> Inner:
    inner = Inner(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme, split=split)
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    inner.train_from_iterator(lines(), trainer)
    return inner


def _trained_bpe(pre_tokenizer: Any, normalizer: Any = None) -> Inner:
    inner = Inner(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        inner.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    inner.train_from_iterator(lines(), trainer)
    return inner


def _llama() -> Inner:
    """BPE with a normalizer that begins each text with a space, without a pre-tokenizer."""
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner = _trained_bpe(pre_tokenizers.Metaspace())
    inner.normalizer, inner.pre_tokenizer = spaces, None
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return inner


def _bpe_with_merged_special() -> Inner:
    """BPE after a split at spaces, whose merges make special tokens: the training text spelled them."""
    inner = Inner(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.train_from_iterator(
        lines() + [f"{SPELLED} / ##"] * 200, trainers.BpeTrainer(vocab_size=160, show_progress=False)
    )
    inner.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return inner


def _whole_words(model: Callable[..., Any]) -> Inner:
    words = sorted({word for line in lines() for word in line.split()} - set(SPECIAL))
    pieces = sorted({character for word in words for character in word})
    tokens = dict.fromkeys([*SPECIAL, *words, *pieces, *(f"##{piece}" for piece in pieces), "<", ">", "/", "##>"])
    inner = Inner(model({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return inner


def _ignoring_merges() -> Inner:
    """BPE that looks up whole words before it merges, as Llama 3 does, with special tokens in its vocabulary."""
    inner = _trained_bpe(pre_tokenizers.WhitespaceSplit())
    inner.model.ignore_merges = True
    return inner


def _word_pairs() -> Inner:
    """Byte-level BPE over pairs of words, so that a cut between two words may fall inside of a pair."""
    pairs = pre_tokenizers.Split(Regex(r" ?\p{L}+ \p{L}+| ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    return _trained_bpe(pre_tokenizers.Sequence([pairs, pre_tokenizers.ByteLevel(False, use_regex=False)]))


def _prefixed_byte_level() -> Inner:
    inner = _trained_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True))
    inner.decoder = decoders.ByteLevel()
    return inner


KINDS: dict[str, Callable[[], Inner]] = {
    "unigram": lambda: _unigram("always", split=True),
    "unigram first": lambda: _unigram("first", split=True),
    "unigram unsplit": lambda: _unigram("always", split=False),
    "llama": _llama,
    "metaspace bpe": lambda: _trained_bpe(pre_tokenizers.Metaspace()),
    "whitespace bpe": _bpe_with_merged_special,
    "ignoring merges": _ignoring_merges,
    "word level": lambda: _whole_words(models.WordLevel),
    "word piece": lambda: _whole_words(models.WordPiece),
    "byte level": lambda: _trained_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "byte level, prefixed": _prefixed_byte_level,
    "word pairs": _word_pairs,
    "stripping": lambda: _trained_bpe(pre_tokenizers.Metaspace(), normalizers.Strip()),
}


def tokenizer_of(kind: str) -> Tokenizer:
    return Tokenizer(KINDS[kind](), ROLES)
