"""Tokens whose frequencies fall as those of words do, in documents of unequal length, for all that train on a GPU.

An embedding's backward pass and the memory that it touches depend on how many ids of the vocabulary a batch has: text
has most of them, and bytes have 256. The id of rank r is as frequent as 1 / (r + 2.7) (Mandelbrot 1953). Lengths are
geometric, 700 tokens on average, about those of web text.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

MEAN_LENGTH = 700  # tokens of a document
SHORTEST = 8
END, MASK = 0, 1  # ids of the end of a document and of a hidden token
N_SPECIAL = 2


def documents(vocab_size: int, n_tokens: int) -> list[Tensor]:
    """Return documents of `n_tokens` ids in all, int64 (length,), without special ids; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    frequencies = 1.0 / (torch.arange(vocab_size - N_SPECIAL, dtype=torch.float64) + 3.7)
    draws = torch.rand(n_tokens, generator=generator, dtype=torch.float64) * frequencies.sum()
    tokens = torch.searchsorted(frequencies.cumsum(0), draws).clamp(max=vocab_size - N_SPECIAL - 1) + N_SPECIAL
    lengths = torch.empty(2 * n_tokens // MEAN_LENGTH + 1).geometric_(1 / MEAN_LENGTH, generator=generator)
    ends = lengths.clamp(min=SHORTEST).long().cumsum(0)
    return list(tokens.tensor_split(ends[ends < n_tokens]))


def stream(vocab_size: int, n_tokens: int) -> Tensor:
    """Return the documents one after another, each with an end, int64."""
    end = torch.tensor([END])
    return torch.cat([part for document in documents(vocab_size, n_tokens) for part in (document, end)])


def settings(folder: Path) -> list[str]:
    """Return the overrides of a run that reads what `write` has written to `folder`."""
    return [
        "data=text_files", f"data.path={folder / 'documents.jsonl'}", "tokenizer=pretrained", f"tokenizer.path={folder}"
    ]  # fmt: skip


def write(folder: Path, vocab_size: int, n_tokens: int) -> None:
    """Write the documents as text, and a tokenizer that gives their ids back."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # here: peers run without

    folder.mkdir(parents=True, exist_ok=True)
    names = ["<|endoftext|>", "[MASK]", *(f"w{number}" for number in range(N_SPECIAL, vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token=names[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(names[:N_SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    with (folder / "documents.jsonl").open("w", encoding="utf8") as lines:
        for document in documents(vocab_size, n_tokens):
            text = " ".join([names[number] for number in document.tolist()])
            lines.write(json.dumps({"text": text}) + "\n")
