"""Published tokenizers: each file format gives the ids of its authors, or an error that names the file."""

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.config import PretrainedTokenizerConfig
from pretrain.data.tokenizers import load as tokenizer_files
from pretrain.data.tokenizers.load import find_tokenizer
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train_bpe import byte_tokenizer
from pretrain.errors import DataError


def write(folder: Path, **files: Any) -> Path:
    """Write files named by their stem: text as .txt, anything else as .json."""
    folder.mkdir(exist_ok=True)
    for stem, content in files.items():
        suffix = "txt" if isinstance(content, str) else "json"
        (folder / f"{stem}.{suffix}").write_text(content if suffix == "txt" else json.dumps(content), encoding="utf-8")
    return folder


def test_vocab_txt_is_berts_word_piece(tmp_path: Path) -> None:
    vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nplay\n##ing\nPlay\n"
    lower = Tokenizer.load(write(tmp_path, vocab=vocab))
    assert lower.encode("Playing [MASK]") == [5, 6, 1, 1, 1]
    assert lower.encode_prompt("Playing [MASK]") == [5, 6, 4]
    assert (lower.bos_id, lower.eos_id, lower.vocab_size) == (2, 3, 8)
    assert lower.added_ids == ([2], [3])  # which an export keeps
    assert lower.decode([2, 5, 6, 3]) == "playing"
    (tmp_path / "vocab.txt").write_bytes(vocab.replace("\n", "\r\n").encode())  # saved on Windows
    assert Tokenizer.load(tmp_path).fingerprint == lower.fingerprint
    cased = Tokenizer.load(write(tmp_path, tokenizer_config={"do_lower_case": False}))
    assert cased.encode("Playing") == [7, 6]


def test_vocab_json_and_merges_are_gpt2s_bpe(tmp_path: Path) -> None:
    vocab = {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "</s>": 4, "<mask>": 5, "#": 6, "<s>": 7}
    config = {"eos_token": {"content": "</s>"}, "mask_token": "<mask>", "bos_token": "not in the vocabulary"}
    write(tmp_path, special_tokens_map=config)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("ab a") == [3, 2, 0]
    assert loaded.encode_prompt("ab <mask>") == [3, 5]
    assert (loaded.bos_id, loaded.eos_id, loaded.mask_id) == (4, 4, 5)
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\r\na b\r\n")  # saved on Windows
    assert Tokenizer.load(tmp_path).fingerprint == loaded.fingerprint
    spaced = Tokenizer.load(write(tmp_path, tokenizer_config={"add_prefix_space": True}))
    assert spaced.encode("ab a") == [2, 3, 2, 0]
    assert spaced.added_ids == ([], [])
    write(tmp_path, special_tokens_map=config | {"cls_token": "<s>", "sep_token": "</s>"})  # RoBERTa's has both
    framed = Tokenizer.load(tmp_path)
    assert (framed.added_ids, framed.encode("ab")) == (([7], [4]), [2, 3])
    (tmp_path / "merges.txt").write_text("a nothing\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"vocab\.json \+ merges\.txt is damaged"):
        Tokenizer.load(tmp_path)


def test_folders_without_a_tokenizer_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.path=.* holds no tokenizer\. Name a folder"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(DataError, match=r"tokenizer\.json is damaged or not a tokenizer file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"tokenizer\.json is damaged"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer_config\.json is damaged .*it is no JSON object"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"tokenizer_config\.json is damaged"):
        Tokenizer.load(tmp_path)
    monkeypatch.setattr(tokenizer_files, "MAX_JSON_BYTES", 1000)
    with pytest.raises(DataError, match=r"tokenizer_config\.json .*: it is larger than the 1,000 bytes"):
        Tokenizer.load(tmp_path)


def test_vocabularies_without_required_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vocab\.txt is damaged .*it has no line \[UNK\]"):
        Tokenizer.load(write(tmp_path / "a", vocab="one\ntwo\n"))
    with pytest.raises(DataError, match=r"tokenizer\.path=.* has no token that ends a document"):
        Tokenizer.load(write(tmp_path / "b", vocab="[UNK]\none\n"))


def test_unknown_hub_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for path in ("someone/no-such-tokenizer", "two spaces/are wrong"):
        with pytest.raises(DataError, match=rf"tokenizer\.path={path} .*revision=null\) is neither a folder nor"):
            PretrainedTokenizerConfig(path=path).load()
    with pytest.raises(DataError, match=r"tokenizer\.path=.*nowhere is not a folder"):
        PretrainedTokenizerConfig(path=str(tmp_path / "nowhere")).load()


def test_a_hub_that_breaks_off_gives_no_half_of_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    byte_tokenizer().save(tmp_path)

    def download(path: str, name: str, revision: str | None) -> str:
        if name != "tokenizer.json":
            raise LocalEntryNotFoundError("the hub answers 429")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    with pytest.raises(DataError, match=r"tokenizer\.path=someone/one .* the hub answers 429"):
        find_tokenizer("someone/one", None)
    known_to_be_missing = huggingface_hub._CACHED_NO_EXIST
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names, revision: known_to_be_missing)
        assert find_tokenizer("someone/one", None) == tmp_path
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    assert find_tokenizer("someone/one", None) == tmp_path, "offline, the cache is all that is known"
