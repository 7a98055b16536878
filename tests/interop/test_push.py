"""What `export.py push=owner/name` sends to the hub, and what it says where the hub refuses."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from families import shape
from hub_server import HubServer, Repository, hub_server
from huggingface_hub import constants
from test_export import run_of

from pretrain.commands.tasks import export
from pretrain.config.scripts import ExportConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.interop.push import push_folder

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content")  # the hub's client to its own HTTP library


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("runs") / "run", shape("llama", context_length=64), causal=True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Yield a server to which pushes go, with its token in the environment."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server speaks LFS
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


def push(run: Path, output: Path, **settings: Any) -> None:
    export(ExportConfig(checkpoint=str(run), output=str(output), push="ada/fox", **settings), [])


def refused(run: Path, output: Path, code: int, **settings: Any) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        push(run, output, **settings)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_the_whole_folder_arrives_in_a_private_repository(
    hub: HubServer, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, tmp_path / "out")
    repository = hub.repositories["ada/fox"]
    assert repository.private
    assert repository.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(repository.files)
    assert list(hub.objects) == [hashlib.sha256(repository.files["model.safetensors"]).hexdigest()]
    assert repository.commits == 1
    said = capsys.readouterr()
    assert f"pushed    6 files to {hub.url}/ada/fox as ada, private\ncommit    {1:040x}" in said.out
    assert hub.token not in said.out + said.err + "".join(str(file) for file in repository.files.values())

    push(run, tmp_path / "shards", max_shard_bytes=20_000)
    assert set(repository.files) == {path.name for path in (tmp_path / "shards").iterdir()}
    assert "model.safetensors" not in repository.files  # which transformers would load instead of the shards


@pytest.mark.slow
def test_a_public_repository_is_asked_for(hub: HubServer, run: Path, tmp_path: Path) -> None:
    hub.repositories["ada/fox"] = Repository(private=False)
    message = refused(run, tmp_path / "out", 2)
    assert message.startswith("push=ada/fox is a public repository, and public=false. Try public=true, or a repo")
    assert not (tmp_path / "out").exists()
    assert not hub.repositories["ada/fox"].files
    push(run, tmp_path / "out", public=True)
    assert hub.repositories["ada/fox"].files
    del hub.repositories["ada/fox"]
    push(run, tmp_path / "again", public=True)
    assert not hub.repositories["ada/fox"].private


def test_what_is_reported_is_what_the_hub_has(hub: HubServer, tmp_path: Path) -> None:
    """Files in folders count, and public=true makes no public repository of a private one."""
    (tmp_path / "1_Pooling").mkdir()
    for name in ("README.md", "1_Pooling/config.json"):
        (tmp_path / name).write_text("{}")
    hub.repositories["ada/fox"] = Repository(private=True)
    told = push_folder(ExportConfig(output=str(tmp_path), push="ada/fox", public=True), "ada")
    assert told.startswith(f"pushed    2 files to {hub.url}/ada/fox as ada, private as before\n")
    assert set(hub.repositories["ada/fox"].files) == {"README.md", "1_Pooling/config.json"}


def test_adapters_leave_the_weights_of_a_model_beside_them(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["ada/fox"] = Repository(private=True)
    hub.repositories["ada/fox"].files["model.safetensors"] = b"weights"
    (tmp_path / "adapter_config.json").write_text("{}")
    push_folder(ExportConfig(output=str(tmp_path), push="ada/fox", adapters=True), "ada")
    assert set(hub.repositories["ada/fox"].files) == {"model.safetensors", "adapter_config.json"}


def test_a_refused_token_is_said_before_anything_is_written(
    hub: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token in ("hf_wrong", "hf_wr\x01ng"):  # the second cannot be sent, and the client's error quotes it
        monkeypatch.setenv("HF_TOKEN", token)
        message = refused(run, tmp_path / "out", 4)
        assert message.startswith("push=ada/fox failed: ")
        assert token not in message
        if token == "hf_wrong":
            assert f"{hub.url} answers 401: the token was refused. Make one with write access" in message
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "no token was found. Log in by: hf auth login, or set HF_TOKEN." in refused(run, tmp_path / "out", 4)
    assert not (tmp_path / "out").exists()
    assert not hub.repositories


def test_a_token_without_write_access_leaves_the_folder_and_says_how_to_send_it(
    hub: HubServer, run: Path, tmp_path: Path
) -> None:
    hub.may_write = False
    message = refused(run, tmp_path / "out", 4)
    assert f"{hub.url} answers 403: the token may not write there." in message
    assert message.endswith(f"To send it: hf upload ada/fox {tmp_path / 'out'} . --private")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_without_a_network_one_sentence_says_so(
    hub: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert f"push=ada/fox failed: {address} cannot be reached (" in refused(run, tmp_path / "out", 4)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused(run, tmp_path / "out", 4)
    assert message == (
        "push=ada/fox failed: HF_HUB_OFFLINE is set, which forbids requests. Unset it, or leave out push."
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["fox", "ada/", "ada/fox/old", "-ada/fox", "ada/f--x", "ada/.fox", "ada/fox\n"])
def test_a_name_that_the_hub_cannot_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is no owner/name of the hub\. Try push=ada/my_model\."):
        ExportConfig(output="x", push=name)
    with pytest.raises(ConfigError, match=r"public=true belongs to push, which is null\. Try push=ada/my_model"):
        ExportConfig(output="x", public=True)


@pytest.mark.long
def test_the_command_pushes_and_a_refused_token_ends_with_code_4(run: Path, tmp_path: Path) -> None:
    """From a shell: HF_ENDPOINT and HF_TOKEN of the environment; the token is in no output and no file."""
    command = [sys.executable, str(ROOT / "src/export.py"), f"checkpoint={run}", "push=ada/fox"]
    with hub_server() as hub:
        for token, code in (("hf_secret", 4), (hub.token, 0)):
            environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
            environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
            done = subprocess.run(
                [*command, f"output=out{code}"], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == code, done.stderr
            files = [path for path in tmp_path.rglob("*") if path.is_file()]
            assert not any(token.encode() in path.read_bytes() for path in files)
            assert token not in done.stdout + done.stderr
        assert json.loads(hub.repositories["ada/fox"].files["config.json"])["model_type"]
