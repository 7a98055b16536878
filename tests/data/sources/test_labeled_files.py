"""Prompt-response pairs and labeled texts are read completely, or refused by setting or file."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.config import Mode, Packing
from pretrain.data.fine_tuning_config import LabeledTextConfig, PairsConfig
from pretrain.data.sources.source import Document, Source
from pretrain.errors import ConfigError, DataError


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def parts(document: Document) -> tuple[str, str]:
    end = document.prompt_characters
    assert end is not None
    return document.text[:end], document.text[end:]


def test_a_template_has_its_escapes_read(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", {"prompt": "Why\\n?", "response": "So"})
    (found,) = PairsConfig(path=str(path), template="Q\\t{prompt}\\\\n\\n{response}").open().documents()
    assert found.text == "Q\tWhy\\n?\\n\nSo"


def test_a_pair_is_what_the_template_makes_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", {"prompt": "Why {response}?", "response": "{prompt} \\n"})
    (found,) = PairsConfig(path=str(path)).open().documents()
    assert parts(found) == ("Why {response}?", "\n{prompt} \\n")  # what stands in the data is never a template
    assert found.name == "pairs.jsonl:1"
    (found,) = PairsConfig(path=str(path), template="User: {prompt}\\nAnswer: {response}").open().documents()
    assert parts(found) == ("User: Why {response}?\nAnswer:", " {prompt} \\n")


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_pairs_have_columns_of_any_name_and_files_may_be_compressed(tmp_path: Path, suffix: str, compress: Any) -> None:
    records = [{"q": "a", "r": "b"}, {"q": "a"}, {"q": 1, "r": "b"}, {"q": "a", "r": " \n"}, {"q": "c", "r": "d"}]
    path = tmp_path / f"p.jsonl{suffix}"
    path.write_bytes(compress("".join(json.dumps(record) + "\n" for record in records).encode()))
    source = PairsConfig(path=str(path), prompt_column="q", response_column="r").open()
    assert [document.text for document in source.documents()] == ["a\nb", "c\nd"]
    assert dict(source.skipped) == {"prompt or response is no string": 2, "empty response": 1}


def labeled(path: Path, **settings: Any) -> Source:
    return LabeledTextConfig(path=str(path), **settings).open()


def found(source: Source) -> list[tuple[str, str | None]]:
    return [(document.text, document.label) for document in source.documents()]


def test_lines_of_text_tab_label(tmp_path: Path) -> None:
    path = tmp_path / "reviews.tsv"
    path.write_bytes(b"\xef\xbb\xbfsentence\tlabel\nfine\tfilm\t1\r\nbad\t0\n\nno tab here\n\xff\t1\nempty label\t\n")
    source = labeled(path)
    assert found(source) == [("fine\tfilm", "1"), ("bad", "0")]
    assert dict(source.skipped) == {"no label": 2, "invalid UTF-8": 1}


@pytest.mark.parametrize("name", ["r.tsv", "r.txt", "r.tsv.gz"])
def test_a_heading_of_two_columns_may_have_the_label_first(tmp_path: Path, name: str) -> None:
    compress = gzip.compress if name.endswith("gz") else bytes
    rows = b"\r\n1\tfine\tfilm\r\n0\tbad\n\nno tab here\n"
    path = tmp_path / name
    path.write_bytes(compress(b"\xef\xbb\xbflabel\ttext" + rows))
    source = labeled(path)
    assert found(source) == [("fine\tfilm", "1"), ("bad", "0")]
    assert dict(source.skipped) == {"no label": 1}
    swapped = source.fingerprint()
    path.write_bytes(compress(b"text\tlabel" + rows))
    assert found(labeled(path)) == [("1\tfine", "film"), ("0", "bad")]
    assert labeled(path).fingerprint() != swapped


def test_json_lines_of_text_and_label(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", {"s": "a", "y": 1}, {"s": "b", "y": " good "}, {"s": "c", "y": 0.5}, {"s": "d"})
    source = labeled(path, text_column="s", label_column="y")
    assert found(source) == [("a", "1"), ("b", "good")]
    assert source.skipped.total() == 2


def test_the_fingerprint_knows_what_decides_the_documents(tmp_path: Path) -> None:
    pairs = write(tmp_path / "p.jsonl", {"prompt": "a", "response": "b"})
    settings: list[dict[str, str]] = [{}, {"template": "Q {prompt} A {response}"}, {"prompt_column": "response"}]
    prints = [PairsConfig(path=str(pairs), **each).open().fingerprint() for each in settings]
    prints += [PairsConfig(path=str(pairs), validation_path=str(pairs)).open().fingerprint()]
    assert len(set(prints)) == 4
    assert PairsConfig(path=str(pairs)).open().fingerprint() == prints[0]


@pytest.mark.parametrize(
    "template",
    ["{prompt}", "{response}{prompt}", "{prompt}{response}{prompt}", "{prompt} {x} {response}", "{prompt}{response}.",
     "{0}{prompt}{response}", "{prompt.__class__} {response}", "{{prompt}} {response}", "} {prompt} {response}",
     "{prompt!r}{response}", "{prompt:>9}{response}"],
)  # fmt: skip
def test_a_template_has_the_two_placeholders_and_no_other_braces(template: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.template=.* must hold \{prompt\} once, then \{response\} once"):
        PairsConfig(path="x", template=template)


def test_settings_that_would_split_or_mix_documents_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.packing=best_fit may split .* Try data\.packing=whole"):
        PairsConfig(path="x", packing=Packing.best_fit)
    with pytest.raises(
        ConfigError, match=r"data\.document_mask=False .*, and texts with labels are .*document_mask=true"
    ):
        LabeledTextConfig(path="x", document_mask=False)
    with pytest.raises(ConfigError, match=r"data\.mode=stream .* Try data\.mode=prepare"):
        LabeledTextConfig(path="x", mode=Mode.stream)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("only text\n")
    with pytest.raises(DataError, match=r"plain\.txt is plain text, but pairs need two columns\. Name a file of JSON"):
        found(PairsConfig(path=str(plain)).open())
    with pytest.raises(DataError, match=r"plain\.txt:1 has no tab\. Write lines of text, tab, label"):
        found(labeled(plain))
    other = write(tmp_path / "other.jsonl", {"question": "a", "text": "b"})
    with pytest.raises(DataError, match=r"other\.jsonl has no data\.prompt_column=prompt\. Try .*question, text"):
        found(PairsConfig(path=str(other)).open())
    with pytest.raises(DataError, match=r"other\.jsonl has no data\.label_column=label\."):
        found(labeled(other))
    with pytest.raises(DataError, match=r"data\.path=.*nowhere does not exist"):
        labeled(tmp_path / "nowhere")


def test_pairs_of_texts_come_from_columns_alone(tmp_path: Path) -> None:
    records: list[object] = [{"a": "x", "b": "y", "label": 1}, {"a": "x", "b": " ", "label": 1}, {"a": "x", "label": 0}]
    source = labeled(write(tmp_path / "pairs.jsonl", *records), text_column="a", pair_column="b")
    assert [(each.text, each.second_text, each.label) for each in source.documents()] == [("x", "y", "1")]
    assert dict(source.skipped) == {"second text is empty or no text": 2}
    table = tmp_path / "pairs.tsv"
    table.write_text("index\tsentence1\tsentence2\tlabel\n0\tx\ty\tentailment\n")
    source = labeled(table, text_column="sentence1", pair_column="sentence2")
    assert [(each.text, each.second_text) for each in source.documents()] == [("x", "y")]
    plain = tmp_path / "plain.tsv"
    plain.write_text("x\tpos\n")
    with pytest.raises(DataError, match=r"plain\.tsv has no columns, but data\.pair_column=b names one\. Name a file"):
        found(labeled(plain, pair_column="b"))


def test_a_number_to_predict_is_no_boolean(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "a", "label": True}, {"text": "b", "label": "1.5"})
    source = LabeledTextConfig(path=str(path), numeric_labels=True).open()
    assert [document.number for document in source.documents()] == [1.5]
    assert dict(source.skipped) == {"text is no string, or label no finite number": 1}


def test_a_label_of_parquet_is_what_it_is_in_json(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    for values in ([True, False], [1, 0], ["yes", "no"]):
        pyarrow.parquet.write_table(pa.table({"text": ["a", "b"], "label": values}), tmp_path / "a.parquet")
        rows = ({"text": text, "label": label} for text, label in zip("ab", values, strict=True))
        write(tmp_path / "a.jsonl", *rows)
        found = [
            [(document.text, document.label) for document in LabeledTextConfig(path=str(path)).open().documents()]
            for path in (tmp_path / "a.parquet", tmp_path / "a.jsonl")
        ]
        assert found[0] == found[1] == [("a", str(values[0])), ("b", str(values[1]))]


def test_lines_may_end_as_on_old_macs(tmp_path: Path) -> None:
    for heading in ("", "text\tlabel\r", "label\ttext\r"):
        rows = "pos\ta\rneg\tb\r" if heading.startswith("label") else "a\tpos\rb\tneg\r"
        (tmp_path / "a.tsv").write_text(heading + rows, newline="")
        source = LabeledTextConfig(path=str(tmp_path / "a.tsv")).open()
        assert [(document.text, document.label) for document in source.documents()] == [("a", "pos"), ("b", "neg")]
    (tmp_path / "a.tsv").write_text("a\rb\tpos\nc\tneg\n", newline="")  # as text of the web may be
    source = LabeledTextConfig(path=str(tmp_path / "a.tsv")).open()
    assert [document.text for document in source.documents()] == ["a\rb", "c"]
