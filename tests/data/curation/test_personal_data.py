"""Personal data: each kind is found whole, numbers that are none are not, and replacing twice is replacing once."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.data.config import BytesTokenizerConfig, CuratedConfig
from pretrain.data.curation.curate import curate
from pretrain.data.curation.manifest import overview
from pretrain.data.curation.personal_data import KINDS, PLACEHOLDERS, find, replaced
from pretrain.data.curation.verify import verify
from pretrain.data.prepare import Corpus, prepare
from pretrain.data.token_store.store import Store
from pretrain.data.tokenizers.train_bpe import byte_tokenizer
from pretrain.errors import ConfigError, DataError
from pretrain.reports.curation import write_corpus_report

ASSETS = Path(os.environ.get("PRETRAIN_ASSETS", "missing")) / "curation" / "pii" / "synth_dataset_v2.json"
EXAMPLES = {
    "secret": ["AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9,
               "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----"],
    "email": ["ada.lovelace+x@mail.example.co.uk", "o'neil@example.org", "jörg@müller.de"],
    "iban": ["GB82WEST12345698765432", "DE89 3704 0044 0532 0130 00", "fr14-2004-1010-0505-0001-3M02-606"],
    "card": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "6011111111111117"],
    "ip": ["81.2.69.142", "2001:4860:4860::8888"],
    "national_id": ["078-05-1120", "219 09 9999"],
    "phone": ["+44 20 7946 0958", "(415) 555-2671", "415-555-2671", "+41 (0)69 979 80 58", "03.93.92.16.85"],
}  # fmt: skip
NEGATIVES = (
    "on 05.10.2016 and 5/10/2016, 2016-10-05", "version 81.2.69.142 and v81.2.69.4", "see 3.1.0.5",
    "10.0.0.1 and 127.0.0.1 and ::1",
    "ISBN 978-3-16-148410-0", "3.14159265358979", "at 12:30:45 and 52.520008, 13.404954", "4111 1111 1111 1112",
    "GB82WEST12345698765433", "000-12-3456, 666-12-3456, 900-12-3456", "a@b and @name and x@y.z", "f(a@b.c1)",
    "1 000 000 to 2 000 000", "pages 100-200, 1999-2004", "0x1234567890", "467 3395", "8.8.8.8.8", "1.2.3",
)  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind in KINDS for value in EXAMPLES[kind]])
def test_each_kind_is_found_whole(kind: str, value: str) -> None:
    text = f"Please take {value}, or ask."
    (span,) = find(text)
    assert (span.kind, text[span.start : span.end]) == (kind, value)
    once, counts = replaced(text, KINDS)
    assert once == f"Please take {PLACEHOLDERS[kind]}, or ask."
    assert counts == {kind: 1}
    assert replaced(once, KINDS) == (once, {})
    assert replaced(text, [kind], remove=True)[0] == "Please take , or ask."
    assert replaced(text, [other for other in KINDS if other not in (kind, "phone")])[0] == text


def test_a_number_is_found_behind_words_that_begin_like_one() -> None:
    for before in ("RE21 Invoice payable to", "AB12CDEF", "GB82 1234 5678 9012"):
        assert replaced(f"{before} DE89 3704 0044 0532 0130 00 now", ["iban"])[0] == f"{before} <IBAN> now"


def test_a_log_of_many_addresses_takes_no_longer_than_its_length() -> None:
    started = time.process_time()
    log = "\n".join(f"81.{n // 40_000 % 250 + 1}.{n // 200 % 200 + 1}.{n % 200 + 1} GET" for n in range(60_000))
    assert len(find(log)) == 60_000
    assert time.process_time() - started < 20  # a comparison of each with all before it takes a minute


@pytest.mark.parametrize("text", NEGATIVES)
def test_other_numbers_are_left(text: str) -> None:
    assert find(text) == []


@pytest.mark.skipif(not ASSETS.is_file(), reason="PRETRAIN_ASSETS names no folder with curation/pii")
def test_labeled_sentences() -> None:
    """Email, address, bank account and social security number: all; cards nearly; phones most, and nothing else."""
    labels = {"EMAIL_ADDRESS": "email", "IBAN_CODE": "iban", "CREDIT_CARD": "card", "IP_ADDRESS": "ip",
              "US_SSN": "national_id", "PHONE_NUMBER": "phone"}  # fmt: skip
    gold: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    right: list[bool] = []
    for row in json.loads(ASSETS.read_text(encoding="utf8")):
        labeled = [(labels.get(each["entity_type"]), each["start_position"], each["end_position"])
                    for each in row["spans"]]  # fmt: skip
        spans = find(row["full_text"])
        for kind, start, end in labeled:
            if kind is not None:
                gold[kind].append(any(s.kind == kind and s.start < end and start < s.end for s in spans))
        right += [
            any(s.kind == kind and s.start < end and start < s.end for kind, start, end in labeled) for s in spans
        ]
    recall = {kind: sum(each) / len(each) for kind, each in gold.items() if each}
    assert {kind: recall[kind] for kind in ("email", "iban", "ip", "national_id")} == dict.fromkeys(
        ("email", "iban", "ip", "national_id"), 1.0
    )
    assert recall["card"] >= 0.99
    assert recall["phone"] >= 0.6
    assert sum(right) / len(right) >= 0.97


@pytest.mark.parametrize("sign", ["a", "1", "a@", "1.", "1 ", "A1", "(1", "::", "0-", "-----BEGIN "])
def test_hostile_texts_take_no_longer_than_their_length(sign: str) -> None:
    started = time.process_time()
    find(sign * (200_000 // len(sign)))
    assert time.process_time() - started < 5


def run(folder: Path, output: str, *more: str) -> dict[str, Any]:
    register_schemas("curate", CurateConfig)
    config = compose(
        "curate",
        [f"sources.web={{kind: jsonl, path: {folder}/web.jsonl, license: MIT}}", "rules=none", "workers=1",
         f"output={folder / output}", *more],
    )  # fmt: skip
    return curate(config, report=lambda line: None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_texts_are_written_without_it_and_documents_with_much_are_dropped(tmp_path: Path) -> None:
    texts = ["Write to ada@example.org or bob@example.org, or call +44 20 7946 0958.", "Nothing here but words.",
             " ".join(f"a{n}@example.org" for n in range(9))]  # fmt: skip
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ("personal_data.kinds=[email,phone]", "rules.max_personal_data=5")
    manifest = run(tmp_path, "masked", *words)
    rows = pq.read_table(tmp_path / "masked" / "data" / "00000.parquet").to_pylist()
    assert [(row["text"], row["personal_data"]) for row in rows] == [
        ("Write to <EMAIL_ADDRESS> or <EMAIL_ADDRESS>, or call <PHONE_NUMBER>.", 3), (texts[1], 0),
    ]  # fmt: skip
    assert manifest["personal_data"]["replaced"] == {"email": 2, "phone": 1}
    assert overview(manifest)[-1] == "personal data  email 2, phone 1 replaced"
    assert "names" in manifest["personal_data"]["not_covered"]
    assert manifest["sources"]["web"]["documents"]["removed"]["personal_data.spans"]["first"] == 1
    page = write_corpus_report(tmp_path / "masked").read_text()
    assert "Personal data" in page
    assert "example.org" not in page  # samples of removed texts neither
    plain = run(tmp_path, "plain")
    ids = pq.read_table(tmp_path / "plain" / "data" / "00000.parquet")["id"].to_pylist()
    assert [row["id"] for row in rows] == ids[:2]  # of the texts as they were read
    assert plain["personal_data"]["replaced"] == {}
    assert not any("personal data" in line for line in overview(plain))
    assert verify(tmp_path / "masked").documents == 2
    manifest = run(tmp_path, "cut", "personal_data.kinds=[email]", "personal_data.replacement=nothing", "workers=2")
    cut = pq.read_table(tmp_path / "cut" / "data" / "00000.parquet").to_pylist()
    assert cut[0]["text"] == "Write to  or , or call +44 20 7946 0958."
    assert overview(manifest)[-1] == "personal data  email 2 cut out"  # the third text is nothing else
    nothing = manifest | {"personal_data": manifest["personal_data"] | {"replaced": {}}}
    assert overview(nothing)[-1] == "personal data  none found of email"


def test_texts_of_which_nothing_is_left_are_removed_and_counted(tmp_path: Path) -> None:
    texts = ["ada@example.org", " bob@example.org\n", "Write to eve@example.org."]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ("personal_data.kinds=[email]", "personal_data.replacement=nothing")
    manifest = run(tmp_path, "cut", *words)
    documents = manifest["sources"]["web"]["documents"]
    assert (documents["read"], documents["personal_data"], documents["kept"], manifest["documents"]) == (3, 2, 1, 1)
    assert manifest["personal_data"]["replaced"] == {"email": 1}
    rows = pq.read_table(tmp_path / "cut" / "decisions" / "00000.parquet").to_pylist()
    assert [row["removed_by"] for row in rows] == ["personal_data", "personal_data", None]
    assert any("nothing but personal data" in line for line in overview(manifest))
    assert verify(tmp_path / "cut").documents == 1
    assert "is nothing but personal data, which" in write_corpus_report(tmp_path / "cut").read_text()
    assert run(tmp_path, "kept", words[0])["documents"] == 3
    (tmp_path / "web.jsonl").write_text(json.dumps({"text": texts[0]}) + "\n")
    with pytest.raises(DataError, match=r"personal_data removed most of them, 1. Try personal_data.replacement=plac"):
        run(tmp_path, "none", *words)


@pytest.mark.slow
def test_texts_that_are_equal_once_written_are_in_one_split(tmp_path: Path) -> None:
    """They differ by what is replaced, or by a paragraph that is cut, and were told apart with it."""
    pattern = "This paragraph stands above many a page. " * 8
    below = ["first", "second"]  # one of them stands alone once the repeated paragraph is cut
    records = [f"Write to user{n}@mail{n}.com" for n in range(40)] + below + [f"{pattern}\n\n{each}" for each in below]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in records))
    words = ("validation.fraction=0.2", "duplicates.near=false", "duplicates.paragraphs=200")
    manifest = run(tmp_path, "masked", *words, "personal_data.kinds=[email]")
    assert manifest["documents"] == 44
    assert manifest["duplicates"]["documents_cut"] == 1
    said = list[str]()
    corpus = prepared_corpus(tmp_path / "masked", tmp_path / "cache", said)
    assert isinstance(corpus.train, Store)
    stores = [corpus.train, *filter(None, [corpus.validation])]
    texts = [byte_tokenizer().decode(store.document(n)) for store in stores for n in range(store.n_documents)]
    assert sum(texts.count(text) for text in [*below, "Write to <EMAIL_ADDRESS>"]) == 3
    assert len(texts) == len(set(texts)) == 4
    assert any("40 skipped (exact duplicates)" in line for line in said)
    run(tmp_path, "plain", *words[:2])
    assert prepared_corpus(tmp_path / "plain", tmp_path / "cache", said).train.n_documents > 20
    assert "exact duplicates" not in said[-1]


def prepared_corpus(folder: Path, cache: Path, said: list[str]) -> Corpus:
    """Return the stores of a curated corpus in bytes."""
    config = CuratedConfig(path=str(folder), validation_fraction=0.2)
    return prepare(config, BytesTokenizerConfig(), cache, said.append).corpora[""]


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"personal_data.kinds=\[mail\] is no kind of personal data.*email"):
        run(tmp_path, "corpus", "personal_data.kinds=[mail]")
