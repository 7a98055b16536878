"""Every kind of file that the project reads, and the commands that read it."""

import csv
import gzip
import json
import lzma
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SHAPE = [
    "model=gpt_nano", "model.n_layers=1", "model.d_model=16", "model.n_heads=2", "model.context_length=32",
    "batch_size=4", "optimizer=adamw", "schedule=constant", "schedule.warmup_steps=0", "trainer.precision=fp32",
    "trainer.accelerator=cpu", "trainer.val_check_interval=100", "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false", "parallel.compile=false", "sample.max_new_tokens=2", "logger=csv",
    "logging.ledger=true",
]  # fmt: skip
WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "seven",
    "small",
    "birds",
    "sing",
    "in",
    "old",
    "trees",
)
TOKENIZER = ["tokenizer=bpe", "tokenizer.vocab_size=300"]


class Runs(Protocol):
    """Runs a script with settings, and raises where it does not end well."""

    def __call__(self, script: str, *words: str) -> None: ...


@dataclass(frozen=True)
class Target:
    """A file that is changed, and the names of the commands that read it."""

    kind: str
    file: str  # a pattern below the folder; the first that fits
    commands: tuple[str, ...]
    turns: int = 1  # in each round: more where the file says more


_OF_RUN = ("generate", "resume", "eval", "inspect", "plan_run", "export")
_OF_STORE = ("prepare", "train", "doctor")
_SAVED, _STORE = "run/checkpoints/step-*2", "cache/stores/*"
TARGETS = [
    Target("checkpoint manifest", f"{_SAVED}/manifest.json", _OF_RUN, turns=6),
    Target("checkpoint tensors", f"{_SAVED}/model.safetensors", ("generate", "resume", "export")),
    Target("checkpoint tensors", f"{_SAVED}/optimizer.safetensors", ("resume", "generate")),
    Target("checkpoint tensors", f"{_SAVED}/random.safetensors", ("resume",)),
    Target("checkpoint tokenizer", f"{_SAVED}/tokenizer/tokenizer.json", ("generate", "resume", "export")),
    Target("checkpoint tokenizer", f"{_SAVED}/tokenizer/tokenizer_config.json", ("generate", "eval")),
    Target("run folder", "run/config.yaml", ("inspect_unsaved", "resume", "plan_run"), turns=2),
    Target("run folder", "run/report.json", ("plan_run", "resume")),
    Target("run folder", "run/metrics.csv", ("resume", "plan_run")),
    Target("run folder", "run/ledger.jsonl", ("resume",)),
    Target("run folder", "run/lock", ("resume",)),
    Target("Hugging Face config", "hf/config.json", ("generate_hf", "init_hf", "export_hf"), turns=5),
    Target("Hugging Face weights", "hf/model-00001-*.safetensors", ("generate_hf", "init_hf")),
    Target("Hugging Face index", "hf/model.safetensors.index.json", ("generate_hf",)),
    Target("Hugging Face tokenizer", "hf/tokenizer.json", ("generate_hf",), turns=2),
    Target("Hugging Face tokenizer", "hf/tokenizer_config.json", ("generate_hf",)),
    Target("Hugging Face config", "hf/generation_config.json", ("generate_hf",)),
    Target("tokenizer files", "tok_whole/tokenizer.json", ("tokenizer_whole",), turns=3),
    Target("tokenizer files", "tok_whole/special_tokens_map.json", ("tokenizer_whole",)),
    Target("tokenizer files", "tok_whole/tokenizer_config.json", ("tokenizer_whole",)),
    Target("tokenizer files", "tok_bpe/vocab.json", ("tokenizer_bpe",)),
    Target("tokenizer files", "tok_bpe/merges.txt", ("tokenizer_bpe",)),
    Target("tokenizer files", "tok_words/vocab.txt", ("tokenizer_words",)),
    Target("store", f"{_STORE}/done.json", ("prepare",)),
    Target("store", f"{_STORE}/train/manifest.json", _OF_STORE, turns=3),
    Target("store", f"{_STORE}/train/shards/00000.tok", _OF_STORE),
    Target("store", f"{_STORE}/train/shards/00000.idx", _OF_STORE),
    Target("store", f"{_STORE}/train/shards/00000.names", _OF_STORE),
    Target("store", f"{_STORE}/validation/manifest.json", ("train", "prepare")),
    Target("store", f"{_STORE}/tokenizer/tokenizer.json", ("prepare", "train")),
    Target("plan of rows", f"{_STORE}/train/plans/*/plan.json", ("train", "inspect")),
    Target("plan of rows", f"{_STORE}/train/plans/*/row_ends.bin", ("train", "inspect")),
    Target("plan of rows", f"{_STORE}/train/plans/*/documents.bin", ("train", "inspect")),
    Target("annotations", "notes_cache/stores/*/train/manifest.json", ("prepare_notes",)),
    Target("annotations", "notes_cache/stores/*/train/annotations.bin", ("prepare_notes",)),
    Target("annotations", "chat_cache/stores/*/train/targets.bin", ("prepare_chat",)),
    Target("stream", "stream_cache/stores/*/ledger.jsonl", ("prepare_stream",)),
    Target("stream", "stream_cache/stores/*/eras/00000/documents.u64", ("prepare_stream",)),
    Target("stream", "stream_cache/stores/*/tokenizer/tokenizer.json", ("prepare_stream",)),
    Target("stream", "stream_cache/stores/*/eras/00000/train/manifest.json", ("prepare_stream",)),
    Target("corpus", "texts/a.txt", ("prepare_txt",)),
    Target("corpus", "texts/a.jsonl", ("prepare_jsonl",)),
    Target("corpus", "texts/a.json", ("prepare_json",)),
    Target("corpus", "texts/a.csv", ("prepare_csv",)),
    Target("corpus", "texts/a.tsv", ("prepare_tsv",)),
    Target("corpus", "texts/a.parquet", ("prepare_parquet",)),
    Target("corpus", "texts/a.txt.gz", ("prepare_txt.gz",)),
    Target("corpus", "texts/a.txt.zst", ("prepare_txt.zst",)),
    Target("corpus", "texts/a.jsonl.xz", ("prepare_jsonl.xz",)),
    Target("fine-tuning", "texts/pairs.jsonl", ("prepare_pairs",)),
    Target("fine-tuning", "texts/chat.jsonl", ("prepare_chat",)),
    Target("fine-tuning", "texts/labeled.txt", ("prepare_labeled",)),
    Target("examples", "texts/minimal.jsonl", ("eval_minimal", "scores")),
    Target("examples", "texts/choice.jsonl", ("eval_choice",)),
    Target("examples", "texts/cloze.jsonl", ("eval_cloze",)),
]


def commands(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Return every command by its name: the script and its words."""
    data = [*TOKENIZER, "data=text_files", f"data.path={folder}/corpus", "data.validation_fraction=0.2"]
    cache = f"paths.cache_dir={folder}/cache"
    new = [f"paths.cache_dir={folder}/new/cache", f"paths.logs_dir={folder}/new/logs"]
    whole_run = [*data, *SHAPE, cache, "trainer.max_steps=2", "checkpoint.every_n_steps=1"]
    saved, scored = f"checkpoint={folder}/run", ["device=cpu", "max_examples=4"]
    found: dict[str, tuple[str, list[str]]] = {
        "generate": ("generate.py", [saved, "prompt=the", "max_new_tokens=2"]),
        "eval": ("eval.py", [saved, "max_rows=2", cache]),
        "resume": ("train.py", [f"resume={folder}/run", "trainer.max_steps=3"]),
        "inspect": ("prepare.py", ["inspect", f"run={folder}/run", "step=1", "characters=20", cache]),
        "inspect_unsaved": ("prepare.py", ["inspect", f"run={folder}/begun", "step=1", "characters=20", cache]),
        "plan_run": ("plan.py", [f"run={folder}/run", "dry_run=false"]),
        "export": ("export.py", [saved, f"output={folder}/new/exported"]),
        "generate_hf": ("generate.py", [f"checkpoint={folder}/hf", "prompt=the", "max_new_tokens=2"]),
        "export_hf": ("export.py", [f"checkpoint={folder}/hf", f"output={folder}/new/exported"]),
        "init_hf": ("train.py", [
            "model=imported", f"init_from={folder}/hf", "data=text_files", f"data.path={folder}/corpus",
            "trainer.max_steps=1",
            "batch_size=2", "trainer.accelerator=cpu", "trainer.precision=fp32", "parallel.compile=false", "logger=csv",
            f"paths.run_dir={folder}/new/run", *new,
        ]),
        "prepare": ("prepare.py", [*data, cache]),
        "train": ("train.py", [*whole_run, f"paths.run_dir={folder}/new/run"]),
        "run": ("train.py", [*whole_run, f"paths.run_dir={folder}/run"]),
        "doctor": ("doctor.py", [*whole_run, "doctor=data"]),
        "prepare_notes": ("prepare.py", [
            "data=pairs", f"data.path={folder}/texts/pairs.jsonl", "tokenizer=bytes",
            f"paths.cache_dir={folder}/notes_cache",
        ]),
        "prepare_chat": ("prepare.py", [
            "data=chat", f"data.path={folder}/texts/chat.jsonl", "tokenizer=bytes",
            f"paths.cache_dir={folder}/chat_cache",
        ]),
        "prepare_stream": ("prepare.py", [
            "data=text_files", f"data.path={folder}/corpus", "tokenizer=bytes", "data.mode=stream",
            "data.era_tokens=2048", f"paths.cache_dir={folder}/stream_cache",
        ]),
        "prepare_pairs": ("prepare.py", [
            "data=pairs", f"data.path={folder}/texts/pairs.jsonl", "tokenizer=bytes", *new,
        ]),
        "prepare_labeled": ("prepare.py", [
            "data=labeled", f"data.path={folder}/texts/labeled.txt", "tokenizer=bytes", *new,
        ]),
        "scores": ("train.py", [
            *whole_run, "trainer.max_steps=1", "scores.every_n_steps=1",
            f"scores.minimal_pairs=[{folder}/texts/minimal.jsonl]", f"paths.run_dir={folder}/new/run",
        ]),
    }  # fmt: skip
    for name in ("txt", "jsonl", "json", "csv", "tsv", "parquet", "txt.gz", "txt.zst", "jsonl.xz"):
        words = ["tokenizer=bytes", "data=text_files", f"data.path={folder}/texts/a.{name}", *new]
        found[f"prepare_{name}"] = ("prepare.py", words)
    for name in ("whole", "bpe", "words"):
        words = ["tokenizer=pretrained", f"tokenizer.path={folder}/tok_{name}", "data=text_files"]
        found[f"tokenizer_{name}"] = ("prepare.py", [*words, f"data.path={folder}/corpus", *new])
    for name, task in (("minimal", "minimal_pairs"), ("choice", "multiple_choice"), ("cloze", "cloze")):
        path = f"path={folder}/texts/{name}.jsonl"
        found[f"eval_{name}"] = ("eval.py", [saved, f"task={task}", path, *scored])
    return found


WRITES = {
    "resume": ("run/", "cache/"),
    "prepare_notes": ("notes_cache/",),
    "prepare_chat": ("chat_cache/",),
    "prepare_stream": ("stream_cache/",),
}
MAY_WRITE = ("new/", "cache/", "tmp/")  # of every command, beside what the row above says of it


def build(folder: Path, run: Runs) -> None:
    """Make everything that the commands read."""
    draw = random.Random(0)
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "seven",
        "small",
        "birds",
        "sing",
        "in",
        "old",
        "trees",
    ]
    texts = [f"{' '.join(draw.choice(words) for _ in range(draw.randint(20, 60)))}." for _ in range(30)]
    for name in ("corpus", "texts", "outside", "home", "tmp", "new"):
        (folder / name).mkdir(parents=True)
    (folder / "outside" / "target.txt").write_text("nobody writes here\n")
    for number, text in enumerate(texts):
        (folder / "corpus" / f"{number:02d}.txt").write_text(f"{text}\n")
    _write_corpora(folder / "texts", texts)
    known = commands(folder)
    for name in ("prepare", "run", "prepare_notes", "prepare_chat", "prepare_stream"):
        script, words_of_it = known[name]
        run(script, *words_of_it)
    shutil.copytree(folder / "run", folder / "begun", ignore=shutil.ignore_patterns("step-*"))
    run("export.py", f"checkpoint={folder}/run", f"output={folder}/hf", "max_shard_bytes=6000")
    _write_tokenizers(folder)
    shutil.rmtree(min((folder / "run" / "checkpoints").glob("step-*")))  # nothing to fall back to


def _write_corpora(folder: Path, texts: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet
    import zstandard

    rows = [{"text": text, "number": number, "of": {"a": [1, None]}} for number, text in enumerate(texts)]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "a.txt").write_text("\n".join(texts))
    (folder / "a.jsonl").write_text(lines)
    (folder / "a.json").write_text(lines)
    for name, delimiter in (("csv", ","), ("tsv", "\t")):
        with (folder / f"a.{name}").open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([["text", "number"], *([t, len(t)] for t in texts)])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "number": list(range(len(texts)))}), folder / "a.parquet")
    (folder / "a.txt.gz").write_bytes(gzip.compress("\n".join(texts).encode()))
    (folder / "a.txt.zst").write_bytes(zstandard.compress("\n".join(texts).encode()))
    (folder / "a.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    pairs = [{"prompt": text[:12], "response": text[12:24]} for text in texts]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    turns = [("user", 0, 9), ("assistant", 9, 15), ("user", 15, 20), ("assistant", 20, 26)]
    chats = [{"messages": [{"role": who, "content": t[a:b]} for who, a, b in turns]} for t in texts]
    (folder / "chat.jsonl").write_text("".join(f"{json.dumps(chat)}\n" for chat in chats))
    (folder / "labeled.txt").write_text("".join(f"{text}\t{'ab'[n % 2]}\n" for n, text in enumerate(texts)))
    examples = {
        "minimal": [{"sentence_good": t[:20], "sentence_bad": t[5:25], "UID": "x"} for t in texts[:6]],
        "choice": [{"query": t[:9], "choices": [t[10:19], t[20:25]], "gold": 0} for t in texts[:6]],
        "cloze": [{"context": "the old", "continuation": "fox"}] * 6,
    }
    for name, records in examples.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def _write_tokenizers(folder: Path) -> None:
    for name in ("whole", "bpe", "words"):
        (folder / f"tok_{name}").mkdir()
    shutil.copy(folder / "hf" / "tokenizer.json", folder / "tok_whole")
    shutil.copy(folder / "hf" / "tokenizer_config.json", folder / "tok_whole")
    (folder / "tok_whole" / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "[EOS]"}}))
    model = json.loads((folder / "hf" / "tokenizer.json").read_text())["model"]
    vocab = dict(model["vocab"]) | {"<|endoftext|>": len(model["vocab"])}
    (folder / "tok_bpe" / "vocab.json").write_text(json.dumps(vocab))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "tok_bpe" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz.",
        *(f"##{c}" for c in "abcdefgh"),
    ]
    (folder / "tok_words" / "vocab.txt").write_text("\n".join(words) + "\n")
