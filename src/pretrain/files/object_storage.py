"""Objects of a storage such as S3, by fsspec: listed, read, written and deleted, each request tried again for a while.

An object is written whole or not at all (S3: "Amazon S3 data consistency model" in
https://docs.aws.amazon.com/AmazonS3/latest/userguide/Welcome.html). Credentials come from the environment or the files
of the cloud's own tools: no setting holds one, and a message that would show one has *** in its place.
"""

import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pretrain.errors import CheckpointError, ConfigError, printable

log = logging.getLogger(__name__)

_STORAGE_EXTRA = "-e '.[storage]'"
_SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "memory": "", "file": ""}  # the library that each needs beside fsspec
_REMOTE = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
_NAME = re.compile(r"[^/\\\x00-\x1f]{1,200}")  # of an object, between two slashes
_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL", re.IGNORECASE)  # names of environment variables
_SHORTEST_SECRET = 8  # characters; shorter values, such as "true", would blank out words
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0
RETRY_S = 60.0
# errors that no second try mends; those of botocore by name, as it is loaded for S3 only
_FINAL = (PermissionError, FileNotFoundError, ImportError, TypeError, ValueError)
_FINAL_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}
T = TypeVar("T")


def is_remote(path: object) -> bool:
    """Return whether a path is an address of an object storage, such as s3://bucket/logs."""
    return _REMOTE.fullmatch(str(path)) is not None


def check_address(setting: str, url: str) -> None:
    """Raise ConfigError unless `url` is an address that is read and written here and holds no credentials."""
    found = _REMOTE.fullmatch(url)
    scheme, rest = found.groups() if found else ("", "")
    if "@" in rest.split("/")[0]:
        raise ConfigError(
            f"{setting} holds credentials before an @, and settings are saved with the run. Leave them to the "
            f"environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and try {setting}=s3://bucket/logs."
        )
    if scheme not in _SCHEMES:
        raise ConfigError(
            f"{setting}={url} is no address of an object storage that is read here: "
            f"{', '.join(f'{each}://' for each in _SCHEMES)}. Try {setting}=s3://bucket/logs."
        )
    if not rest.strip("/") or not all(_is_name(part) for part in rest.strip("/").split("/")):
        raise ConfigError(f"{setting}={url} names no plain folder of a bucket. Try {setting}={scheme}://bucket/logs.")


def refuse_address(setting: str, path: str | None, instead: str = "") -> None:
    """Raise ConfigError if a setting that names a folder of this machine is an address of an object storage.

    `instead` says what to type, by default how to copy the folder.
    """
    if path is not None and is_remote(path):
        copied = f"Copy it first, such as by aws s3 sync {printable(path)} <folder>, and try {setting}=<folder>."
        raise ConfigError(
            f"{setting}={printable(path)} is in an object storage, and this setting takes a folder of this machine. "
            f"{instead or copied}"
        )


def _is_name(part: str) -> bool:
    return _NAME.fullmatch(part) is not None and part not in (".", "..")


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of an object storage. Names of objects are relative to it, with slashes.

    Every method raises CheckpointError with address and reason when the storage refuses, or when it has failed for
    `retry_s` seconds; FileNotFoundError where an object does not exist.
    """

    url: str
    retry_s: float = RETRY_S

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))

    def below(self, name: str) -> "RemoteFolder":
        """Return a folder in this one."""
        return RemoteFolder(f"{self.url}/{name}", self.retry_s)

    @property
    def parts(self) -> list[str]:
        """The names of its address, the bucket first."""
        return self.url.partition("://")[2].strip("/").split("/")

    def files(self) -> dict[str, int]:
        """Return the size in bytes of every object in it, by name; those with names that no run writes are left out."""
        found: dict[str, dict[str, Any]] = self._retried("list", "", lambda: self._system.find(self._path, detail=True))
        start = len(self._path.rstrip("/")) + 1
        sizes = {name[start:]: int(info.get("size") or 0) for name, info in found.items()}
        return {name: size for name, size in sizes.items() if all(_is_name(part) for part in name.split("/"))}

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of an object; raises ValueError beyond `limit` bytes."""

        def read() -> bytes:
            with self._system.open(self._at(name), "rb") as file:
                return bytes(file.read(limit + 1))

        data = self._retried("read", name, read)
        if len(data) > limit:
            raise ValueError(f"it is larger than the {limit:,} bytes that such a file may have")
        return data

    def download(self, name: str, path: Path) -> None:
        """Copy an object to a file, which is not trusted before its hash is compared."""
        self._retried("read", name, lambda: self._system.get_file(self._at(name), str(path)))

    def upload(self, path: Path, name: str) -> None:
        """Copy a file to an object, which appears when all of it has arrived.

        Raises OSError where the file cannot be read.
        """
        with path.open("rb"):
            pass
        self._retried("write", name, lambda: self._system.put_file(str(path), self._at(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write an object."""
        self._retried("write", name, lambda: self._system.pipe_file(self._at(name), data))

    def delete(self, name: str) -> None:
        """Delete an object, if it exists."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                self._system.rm_file(self._at(name))

        self._retried("delete", name, delete)

    def blocks(self, name: str, take: Callable[[bytes], object]) -> None:
        """Give the content of an object to `take`, a block of 1 MiB at a time, without a file."""
        with self._retried("read", name, lambda: self._system.open(self._at(name), "rb")) as file:
            while block := self._retried("read", name, lambda: file.read(1 << 20)):
                take(block)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        check_address("the address", self.url)
        scheme = self.url.partition("://")[0]
        options: dict[str, Any] = {"auto_mkdir": True} if scheme == "file" else {"use_listings_cache": False}
        if scheme == "s3":  # botocore draws its pauses from the global generator of `random`, whose state a run saves
            options["config_kwargs"] = {"retries": {"total_max_attempts": 1}}
        try:
            from fsspec.core import url_to_fs  # here: it comes with what trains, and few runs need it

            system, path = url_to_fs(self.url, **options)
        except ImportError:
            raise ConfigError(
                f"{self.url} needs the package {_SCHEMES[scheme] or 'fsspec'}. Install it: "
                f"pip install {_STORAGE_EXTRA if scheme == 's3' else _SCHEMES[scheme] or 'fsspec'}"
            ) from None
        return system, str(path)

    @property
    def _system(self) -> Any:
        return self._opened[0]

    @property
    def _path(self) -> str:
        return self._opened[1]

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    def _retried(self, verb: str, name: str, work: Callable[[], T]) -> T:
        """Return the result of a request, repeated with growing pauses while it fails for a reason that may pass."""
        if name and not all(_is_name(part) for part in name.split("/")):
            raise ValueError(f"{name!a} is no plain name of an object")
        start, wait_s, where = time.monotonic(), _FIRST_WAIT_S, f"{self.url}/{name}".rstrip("/")
        self._opened  # noqa: B018  (an address or library that is missing is an error of its own)
        while True:
            try:
                return work()
            except Exception as error:
                if isinstance(error, FileNotFoundError) and verb == "read":
                    raise FileNotFoundError(f"{where} does not exist") from None
                reason = without_secrets(error)
                passed_s = time.monotonic() - start
                if is_final(error) or passed_s + wait_s > self.retry_s:
                    tried = "" if is_final(error) else f" for {passed_s:.0f} s"
                    raise CheckpointError(f"cannot {verb} {where}{tried}: {reason}. {_advice(error)}") from None
                if wait_s == _FIRST_WAIT_S:
                    line = f"cannot {verb} {where}: {reason}; trying again for up to {self.retry_s:g} s"
                    log.warning("%s", printable(line, one_line=True))
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def is_final(error: BaseException) -> bool:
    """Return whether a second try of a request cannot end otherwise: no permission, no bucket, no credentials."""
    return isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES


def _advice(error: BaseException) -> str:
    if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
        return "Check the credentials in the environment, and what they may do with this bucket"
    if isinstance(error, FileNotFoundError):
        return "Check that the bucket exists"
    return "Check the network and the address of the storage; storage.retry_s is how long it is tried again"


def without_secrets(error: BaseException) -> str:
    """Return the message of a library's error in one short line, with *** for values of secret variables."""
    text = " ".join((str(error) or type(error).__name__).split())
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text[:300].rstrip(".")
