"""Draw docs/pictures/batch.svg from a real batch, and print the shapes of one: `python benchmarks/batch_picture.py`.

The picture is of four documents in rows of 28 tokens, a byte a token, made by the code that a training run uses. The
shapes are those of the first micro-batch of `gpt_nano` and `bert_nano`. The same code gives the same bytes.
"""

import tempfile
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.data.collate import IGNORE, Rows, read_rows
from pretrain.data.config import Packing
from pretrain.data.packing import plan_rows
from pretrain.data.token_store.build import open_writer
from pretrain.data.token_store.store import Store
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train_bpe import byte_tokenizer
from pretrain.models.interface import build_model, hidden_states
from pretrain.models.masks import dense_mask, mask_mod
from pretrain.objectives.batch import Batch
from pretrain.objectives.config import CausalConfig, MaskedConfig
from pretrain.objectives.objective import ModelWithLoss

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "pictures" / "batch.svg"
TEXTS = ("a fox runs", "dogs sleep", "it rains", "birds sing")
ROW = 28  # tokens
CELL, LEFT, TOP, LINE, SMALL = 25, 96, 34, 30, 7
INK, FAINT = "#768390", "#8c959f"
COLORS = {-1: FAINT, 0: "#2f81f7", 1: "#d9730d", 2: "#2da44e"}


def store_of(folder: Path, texts: list[str] | tuple[str, ...], tokenizer: Tokenizer) -> Store:
    """Return a token store of these texts, each with its first and last token."""
    writer = open_writer(folder, tokenizer, shard_tokens=1 << 20)
    for number, text in enumerate(texts):
        ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
        writer.add(np.array(ids), len(text.encode()), f"document {number}")
    return writer.finish({})


def batches(rows: Rows, tokenizer: Tokenizer) -> tuple[Batch, Batch]:
    """Return the causal and the masked micro-batch of the same rows."""
    samples = torch.arange(len(rows.tokens))
    made = [config.build(tokenizer, seed=0).collate(rows, samples) for config in (CausalConfig(), MaskedConfig())]
    return made[0], made[1]


def picture(tokenizer: Tokenizer, rows: Rows) -> str:
    """Return the picture of the first row: tokens, positions, documents, targets of both objectives, and both masks."""
    causal, masked = batches(rows, tokenizer)
    documents = rows.documents[0]
    names = {tokenizer.eos_id: "$", tokenizer.mask_id: "M", IGNORE: ""}  # a byte tokenizer begins a text with its end

    def spell(ids: list[int]) -> list[str]:
        shown = [names[i] if i in names else tokenizer.decode([i]) for i in ids]
        return [cell if cell.isprintable() and cell != "\ufffd" else "?" for cell in shown]

    hidden = [""] * ROW
    assert masked.target_positions is not None
    for position, target in zip(masked.target_positions[0].tolist(), masked.targets[0].tolist(), strict=True):
        if target != IGNORE:
            hidden[position] = spell([target])[0]
    lines = [
        ("tokens", spell(causal.tokens[0].tolist())),
        ("positions", [str(p) for p in causal.positions[0].tolist()]),
        ("documents", [str(d) for d in documents.tolist()]),
        ("targets", spell(causal.targets[0].tolist())),
        ("tokens", spell(masked.tokens[0].tolist())),
        ("targets", hidden),
    ]
    parts = []
    for number, (name, cells) in enumerate(lines):
        y = TOP + LINE * number + (26 if number > 3 else 0)
        parts.append(_text(LEFT - 10, y + 18, name, anchor="end"))
        for column, cell in enumerate(cells):
            parts.append(_cell(LEFT + CELL * column, y, cell, COLORS[int(documents[column])]))
    parts.append(_text(LEFT, TOP - 10, "causal: the target of a position is the next token of its document", INK))
    parts.append(
        _text(LEFT, TOP + 4 * LINE + 16, "masked: hidden tokens (M, another one, or unchanged) are the targets", INK)
    )
    x = LEFT + CELL * ROW + 34
    for top, is_causal, title in ((TOP - 4, True, "causal mask"), (TOP - 4, False, "bidirectional mask")):
        parts += _mask(x, top, torch.from_numpy(rows.documents[:1]), is_causal, title)
        x += SMALL * ROW + 26
    title = "One packed row as two objectives read it"
    about = (
        f"A row of {ROW} tokens holds {int(documents.max()) + 1} documents. Positions restart with each document, "
        "targets never cross from one to the next, and both attention masks are blocks along the diagonal."
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x} {TOP + 6 * LINE + 40}" role="img" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="13">\n'
        f"<title>{title}</title><desc>{about}</desc>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: int, y: int, text: str, color: str = INK, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" fill="{color}" text-anchor="{anchor}">{escape(text)}</text>'


def _cell(x: int, y: int, text: str, color: str) -> str:
    box = f'<rect x="{x}" y="{y}" width="{CELL - 3}" height="{LINE - 5}" rx="3" fill="none" stroke="{color}"/>'
    middle = x + (CELL - 3) // 2
    return box + (_text(middle, y + 17, "\u2423" if text == " " else text, color, "middle") if text else "")


def _mask(x: int, y: int, documents: torch.Tensor, causal: bool, title: str) -> list[str]:
    """Return a square for each allowed pair: the query's row, the key's column."""
    positions = torch.arange(ROW)
    allowed = dense_mask(mask_mod(causal, None, documents), positions, positions, 1)[0, 0]
    parts = [_text(x, y - 6, title)]
    parts.append(
        f'<rect x="{x}" y="{y}" width="{SMALL * ROW}" height="{SMALL * ROW}" fill="none" stroke="{FAINT}" '
        'stroke-width="0.5"/>'
    )
    for query, key in allowed.nonzero().tolist():
        color = COLORS[int(documents[0, query])]
        parts.append(
            f'<rect x="{x + SMALL * key}" y="{y + SMALL * query}" width="{SMALL - 1}" height="{SMALL - 1}" '
            f'fill="{color}"/>'
        )
    return parts


def draw() -> str:
    """Return the picture of `TEXTS`."""
    tokenizer = byte_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder) / "store", TEXTS, tokenizer)
        plan = plan_rows(store, Packing.best_fit, ROW)
        rows = read_rows(store, plan, np.arange(len(plan)), tokenizer.pad_id)
    return picture(tokenizer, rows)


def shapes(preset: str) -> list[str]:
    """Return a line of a Markdown table for each tensor of a preset's first micro-batch, from batch to loss."""
    register_schemas("train", RunConfig)
    config: Any = compose("train", [f"model={preset}"])
    tokenizer, length = byte_tokenizer(), config.model.context_length
    with tempfile.TemporaryDirectory() as folder:
        texts = [f"Document {number} counts: " + " ".join(map(str, range(number))) for number in range(60)]
        store = store_of(Path(folder) / "store", texts, tokenizer)
        plan = plan_rows(store, config.data.packing, length)
        rows = read_rows(store, plan, np.arange(config.batch_size), tokenizer.pad_id)
    batch = batches(rows, tokenizer)[config.objective.kind == "masked"]
    vocab_size = config.model.vocabulary(config.tokenizer.vocab_size)
    torch.manual_seed(0)
    model = build_model(config.model, vocab_size, config.objective.causal)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    objective = config.objective.build(tokenizer, seed=0)
    hidden = hidden_states(model, batch.tokens, batch.positions, batch.documents)
    loss, count = ModelWithLoss(model, objective)(batch)
    named: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    named |= {"last hidden states": hidden, "weight of the head": model.head.weight}
    named |= {"summed loss": loss, "number of targets": count}
    return [
        f"| {name} | {tuple(tensor.shape)} | {str(tensor.dtype).removeprefix('torch.')} |"
        for name, tensor in named.items()
        if tensor is not None
    ]


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf8")
    for preset in ("gpt_nano", "bert_nano"):
        print(preset, *shapes(preset), sep="\n")
