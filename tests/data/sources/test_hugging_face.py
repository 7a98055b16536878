"""Local Hugging Face data sets are read in order; unavailable ones give an error without a traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from pretrain.data.config import HuggingFaceConfig, Mode
from pretrain.data.sources.source import Source
from pretrain.data.streaming.ledger import Ledger
from pretrain.data.streaming.producer import StreamJob, produce
from pretrain.data.tokenizers.train_bpe import byte_tokenizer
from pretrain.errors import ConfigError, DataError


def texts(source: Source) -> list[str]:
    return [document.text for document in source.documents()]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same documents as raw files, as a saved data set and as a saved set of splits."""
    import datasets

    folder = tmp_path_factory.mktemp("datasets")
    train = datasets.Dataset.from_dict({"text": ["one", None, "", "four"], "id": [1, 2, 3, 4]})
    test = datasets.Dataset.from_dict({"text": ["five"], "id": [5]})
    (folder / "raw").mkdir()
    train.to_json(folder / "raw" / "train.jsonl")
    test.to_json(folder / "raw" / "test.jsonl")
    train.save_to_disk(folder / "single")
    datasets.DatasetDict(train=train, test=test).save_to_disk(folder / "splits")
    return folder


@pytest.mark.parametrize("form", ["raw", "single", "splits"])
def test_a_local_data_set_is_read_in_order(saved: Path, form: str) -> None:
    source = HuggingFaceConfig(path=str(saved / form)).open()
    assert [(document.text, document.name) for document in source.documents()] == [
        ("one", "train:1"),
        ("four", "train:4"),
    ]
    assert source.skipped == {"text is no string": 1, "empty": 1}
    assert source.validation_documents() is None
    with pytest.raises(DataError, match=r"data\.split=nosuch is not a split of .*: .*train"):
        texts(HuggingFaceConfig(path=str(saved / form), split="nosuch").open())
    with pytest.raises(DataError, match=r"\(data\.split=train\) has no data\.text_column=body\. .*: id, text"):
        texts(HuggingFaceConfig(path=str(saved / form), text_column="body").open())


def test_files_that_the_library_puts_into_no_split_are_counted(saved: Path, tmp_path: Path) -> None:
    source = HuggingFaceConfig(path=str(saved / "raw")).open()
    assert texts(source) == ["one", "four"]
    assert source.remarks() == []
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    (tmp_path / "c.txt").write_text("three")
    (tmp_path / "README.md").write_text("A card.")
    source = HuggingFaceConfig(path=str(tmp_path)).open()
    assert texts(source) == ["a.jsonl", "b.jsonl"]
    (line,) = source.remarks()
    assert "files that the datasets library puts into no split are not read: 1 .txt. To read all" in line
    assert HuggingFaceConfig(path=str(saved / "single")).open().remarks() == []


@pytest.mark.parametrize("form", ["single", "splits"])
@pytest.mark.parametrize("name", ["subset", "revision"])
def test_a_saved_data_set_has_no_parts_to_choose(saved: Path, form: str, name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"data\.{name}=en chooses nothing in .*{form}, which .* Try data\.{name}=null"
    ):
        HuggingFaceConfig(path=str(saved / form), **{name: "en"}).open()


@pytest.mark.parametrize("form", ["raw", "splits"])
def test_a_local_data_set_gives_its_validation_split(saved: Path, form: str) -> None:
    documents = HuggingFaceConfig(path=str(saved / form), validation_split="test").open().validation_documents()
    assert documents is not None
    assert [document.text for document in documents] == ["five"]


def test_max_documents_stops_early_and_counts_in_the_fingerprint(saved: Path) -> None:
    source = HuggingFaceConfig(path=str(saved / "raw"), max_documents=3).open()
    assert texts(source) == ["one"]
    assert source.fingerprint() == HuggingFaceConfig(path=str(saved / "raw"), max_documents=3).open().fingerprint()
    assert source.fingerprint() != HuggingFaceConfig(path=str(saved / "raw")).open().fingerprint()


def test_a_data_set_that_cannot_be_had_is_refused(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    remote = HuggingFaceConfig(path="someone/no-such-data-set", subset="small").open()
    with pytest.raises(
        DataError, match=r"data\.path=someone/no-such-data-set \(data\.subset=small, .*this machine can reach"
    ):
        texts(remote)
    with pytest.raises(DataError, match=r"data\.path=someone/no-such-data-set .*revision=null\) cannot be read"):
        remote.fingerprint()
    with monkeypatch.context() as patch:
        scripts = RuntimeError("Dataset scripts are no longer supported, but found old.py")
        patch.setattr(datasets, "load_dataset_builder", Mock(side_effect=scripts))
        with pytest.raises(DataError, match=r"data\.path=someone/old .* cannot be read: .*scripts are no longer"):
            HuggingFaceConfig(path="someone/old").open().fingerprint()
    for path in (str(tmp_path / "nowhere"), str(saved / "raw" / "train.jsonl")):
        with pytest.raises(DataError, match=r"data\.path=.* is not a folder"):
            HuggingFaceConfig(path=path).open()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.jsonl").write_text('{"text": "x"')
    with pytest.raises(DataError, match=r"data\.path=.*damaged .* cannot be read: .* Check this folder's files"):
        texts(HuggingFaceConfig(path=str(tmp_path / "damaged")).open())


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "train-1.jsonl").write_text('{"text": "another text"}\n'),
        lambda folder: (folder / "train-1.jsonl").write_text(
            (folder / "train-1.jsonl").read_text() + '{"text": "x"}\n'
        ),
        lambda folder: (folder / "train-2.jsonl").write_text('{"text": "a new file"}\n'),
    ],
    ids=["rewritten", "appended to", "a new file"],
)
def test_a_folder_that_changes_while_it_is_streamed_is_refused(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(2):
        lines = (json.dumps({"text": f"text {number} {line}, of some words"}) for line in range(100))
        (folder / f"train-{number}.jsonl").write_text("\n".join(lines) + "\n")
    data = HuggingFaceConfig(path=str(folder), mode=Mode.stream, era_tokens=1024, validation_fraction=0.2)
    source, stream = data.open(), tmp_path / "stream"
    tokenizer = byte_tokenizer()
    produce(StreamJob(stream, source, tokenizer, print), enough=lambda: bool(Ledger(stream).eras))
    kept = len(Ledger(stream).eras)
    assert kept == 1
    change(folder)
    with pytest.raises(
        DataError, match=r"train-\d\.jsonl of data\.path=.* has changed since reading began.*read a copy"
    ):
        produce(StreamJob(stream, source, tokenizer, print), enough=lambda: False)
    assert len(Ledger(stream).eras) == kept
    assert Ledger(stream).end is None
