"""The real protocol of S3, by a server of moto on this machine. Skipped where s3fs or moto are not installed."""

import importlib.util
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from job import files, kill
from same_state import assert_same_state

from pretrain.checkpoint.remote import local_copy, runs_below
from pretrain.errors import CheckpointError
from pretrain.files.object_storage import RemoteFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("s3fs") is None or importlib.util.find_spec("moto") is None,
        reason="pip install -e '.[storage]' -c constraints-storage.txt",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
URL, SECRET = "s3://bucket/logs", "planted-secret-of-the-test"
_HOP = ("host", "connection", "transfer-encoding", "content-length", "server", "date")


class Proxy:
    """Passes requests on to the server of moto; `answer` may return a status and a code of S3 instead, or wait."""

    def __init__(self, host: str, port: int) -> None:
        self.answer: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                refused = proxy.answer(self.command, self.path)
                if refused is not None:
                    status, code = refused
                    data = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
                    self.reply(status, {}, b"" if self.command == "HEAD" else data)
                    return
                there = HTTPConnection(host, port, timeout=60)
                kept = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                there.request(self.command, self.path, body, kept)
                found = there.getresponse()
                self.reply(found.status, dict(found.getheaders()), found.read())

            def reply(self, status: int, headers: dict[str, str], data: bytes) -> None:
                self.send_response(status)
                length = {name.lower(): value for name, value in headers.items()}.get("content-length")
                for name, value in headers.items():
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                size = length if self.command == "HEAD" and length else str(len(data))
                self.send_header("content-length", size)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on  # noqa: N815  (names of http.server)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Return a bucket of S3 behind a proxy; its address and credentials are in the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")).close()
    proxy = Proxy(host, port)
    for name, value in {
        "AWS_ENDPOINT_URL": proxy.address, "AWS_ACCESS_KEY_ID": "planted-key-of-the-test",
        "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # of another endpoint
    yield proxy
    proxy.server.shutdown()
    proxy.server.server_close()
    server.stop()


def steps() -> list[int]:
    return [int(step[5:]) for run in runs_below(RemoteFolder(URL, retry_s=5.0)) for step in run.checkpoints]


def train(job, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        job.command(*words, "name=a", "schedule=constant"),
        cwd=job.folder, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


def no_secret_in(folder: Path, *texts: str) -> None:
    for path in folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert all("planted" not in text for text in texts)


def test_a_run_killed_amid_an_upload_goes_on_from_the_bucket_bit_for_bit(job, s3: Proxy) -> None:
    """SIGKILL as the second checkpoint is written to the bucket, the folder lost, 503s on the way back."""
    reference = job.run("reference", "schedule=constant", "name=a")
    reached = threading.Event()

    def stop_there(method: str, path: str) -> None:
        if method == "PUT" and "step-00000010/optimizer" in path:
            reached.set()
            time.sleep(5)

    s3.answer = stop_there
    words = (f"storage.url={URL}", "name=a", "schedule=constant")
    process = job.start("logs/a/first", *words)
    assert reached.wait(240)
    kill(process)
    s3.answer = lambda method, path: None
    assert steps() == [5]
    first = job.folder / "logs" / "a" / "first"
    first.rename(job.folder / "lost")

    refused = [0]

    def refuse_some(method: str, path: str) -> tuple[int, str] | None:
        refused[0] += 1
        return (503, "SlowDown") if refused[0] % 4 == 0 else None

    s3.answer = refuse_some
    found = train(job, f"resume={URL}", "trainer.max_steps=10")
    assert found.returncode == 0, found.stderr
    s3.answer = lambda method, path: None
    assert steps() == [5, 10]
    copy = local_copy(URL, job.folder / "cache")
    assert_same_state(copy, reference)
    assert files(copy) == files(reference)
    no_secret_in(job.folder, found.stdout, found.stderr)


def test_wrong_credentials_are_an_error_before_the_run(job, s3: Proxy) -> None:
    s3.answer = lambda method, path: (403, "InvalidAccessKeyId")
    found = train(job, f"storage.url={URL}")
    assert found.returncode == 4, found.stderr
    assert f"cannot write {URL}/.probe" in found.stderr
    assert "Check the credentials" in found.stderr
    assert not (job.folder / "logs").exists()
    no_secret_in(job.folder, found.stdout, found.stderr)


def test_a_slow_server_is_waited_for(job, s3: Proxy) -> None:
    s3.answer = lambda method, path: time.sleep(0.2)
    found = train(job, f"storage.url={URL}", "trainer.max_steps=5")
    assert found.returncode == 0, found.stderr
    s3.answer = lambda method, path: None
    assert steps() == [5]


def test_a_server_that_goes_on_failing_is_an_error_and_nothing_is_lost(tmp_path: Path, s3: Proxy) -> None:
    folder = RemoteFolder(URL, retry_s=1.0)
    folder.write("a", b"x")
    s3.answer = lambda method, path: (503, "SlowDown")
    with pytest.raises(CheckpointError, match=r"cannot write s3://bucket/logs/a for \d+ s: "):
        folder.write("a", b"y")
    s3.answer = lambda method, path: None
    assert folder.read("a", 5) == b"x"
    with pytest.raises(CheckpointError, match="Check that the bucket exists"):
        RemoteFolder("s3://other/logs", retry_s=1.0).write("a", b"")
