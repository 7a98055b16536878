"""Objects are read and written whole; a request is tried again; no message shows a secret."""

import logging
from pathlib import Path

import pytest
from faulty_storage import URL, FaultyStorage

from pretrain.errors import CheckpointError, ConfigError
from pretrain.files import object_storage
from pretrain.files.object_storage import RemoteFolder, check_address, is_remote


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_storage, "_FIRST_WAIT_S", 0.001)


def test_what_was_written_is_read_back(storage: FaultyStorage, tmp_path: Path) -> None:
    folder, path = RemoteFolder(URL), tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 5000)
    folder.upload(path, "a/b")
    folder.below("a").write("c", b"xyz")
    assert folder.files() == {"a/b": 1_280_000, "a/c": 3}
    assert folder.read("a/c", 3) == b"xyz"
    folder.download("a/b", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    blocks: list[bytes] = []
    folder.blocks("a/b", blocks.append)
    assert b"".join(blocks) == path.read_bytes()
    assert max(map(len, blocks)) == 1 << 20
    folder.delete("a/c")
    folder.delete("a/c")
    assert list(folder.files()) == ["a/b"]
    with pytest.raises(FileNotFoundError, match="memory://bucket/logs/a/c does not exist"):
        folder.read("a/c", 3)
    with pytest.raises(ValueError, match="larger than the 5 bytes"):
        folder.read("a/b", 5)
    with pytest.raises(OSError, match="missing"):
        folder.upload(tmp_path / "missing", "a")
    with pytest.raises(ValueError, match="no plain name"):
        folder.write("../up", b"")


def test_a_request_is_tried_again(storage: FaultyStorage, caplog: pytest.LogCaptureFixture) -> None:
    storage.refuse(OSError("503 slow down"), times=3)
    with caplog.at_level(logging.WARNING):
        RemoteFolder(URL).write("a", b"x")
    assert RemoteFolder(URL).read("a", 1) == b"x"
    (line,) = caplog.messages  # once, not at each try
    assert line == f"cannot write {URL}/a: 503 slow down; trying again for up to 60 s"


def test_a_request_that_goes_on_failing_is_an_error(storage: FaultyStorage) -> None:
    storage.refuse(OSError("503 slow down"))
    with pytest.raises(CheckpointError, match=r"cannot list memory://bucket/logs for 0 s: 503 slow down\. .*retry_s"):
        RemoteFolder(URL, retry_s=0.05).files()
    assert len(storage.requests) > 2


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (PermissionError("access denied"), "Check the credentials"),
        (FileNotFoundError("no bucket"), "Check that"),
    ],
)
def test_a_refusal_is_an_error_at_once(storage: FaultyStorage, error: Exception, advice: str) -> None:
    storage.refuse(error)
    with pytest.raises(CheckpointError, match=f"cannot write {URL}/a: {error}. {advice}"):
        RemoteFolder(URL).write("a", b"")
    assert len(storage.requests) == 1


def test_no_message_shows_a_secret(
    storage: FaultyStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    storage.refuse(OSError("signature of planted-secret is wrong"))
    with pytest.raises(CheckpointError, match=r"signature of \*\*\* is wrong") as found:
        RemoteFolder(URL, retry_s=0.05).files()
    assert "planted" not in f"{found.value}{caplog.text}"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://host/a", r"storage.url=http://host/a is no address .*Try storage.url=s3://bucket/logs"),
        ("logs", "is no address of an object storage"),
        ("s3://", "names no plain folder of a bucket"),
        ("s3://bucket/../a", "names no plain folder of a bucket"),
        ("s3://id:hidden@bucket/a", "holds credentials before an @"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as found:
        check_address("storage.url", url)
    assert "hidden" not in str(found.value)
    assert is_remote(url) == ("://" in url)


def test_a_library_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"gs://bucket/logs needs the package gcsfs. Install it: pip install gcsfs"):
        RemoteFolder("gs://bucket/logs").files()
