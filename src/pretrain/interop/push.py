"""Send an exported folder to the Hugging Face hub: `push` of `src/export.py`.

Client: https://huggingface.co/docs/huggingface_hub/guides/upload. HF_ENDPOINT names another server than the hub.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.config.scripts import ExportConfig
from pretrain.errors import CheckpointError, ConfigError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import HfApi

# weights of an earlier push: transformers would read an old model.safetensors before new shards
_REPLACED = ["*.safetensors", "*.safetensors.index.json"]
_ANSWERS = {
    401: "the token was refused. Make one with write access in your settings there, then: hf auth login",
    403: "the token may not write there. Check the owner's name, and that the token has write access",
    404: "there is no such repository or owner, or the token may not see it",
    429: "it takes no more requests for now. Try later",
}


def sign_in(config: ExportConfig) -> str | None:
    """Return the name of the account whose token will push, asked before anything is written; None without `push`.

    Raises CheckpointError if there is no token, if the hub refuses it or cannot be reached, and ConfigError if `push`
    is a public repository and `public` is false.
    """
    if config.push is None:
        return None
    hub = _hub()
    with _as_checkpoint_error(config.push):
        account = str(hub.whoami()["name"])
        if not config.public and hub.repo_exists(config.push) and not _is_private(hub, config.push):
            raise _is_public(config.push)
    return account


def push_folder(config: ExportConfig, account: str) -> str:
    """Send the files of `config.output` in one commit, and return the lines that say where they are.

    A new repository is private unless `config.public`. Weights that an earlier push left there are replaced by those
    of a model, and stay beside adapters.
    Raises CheckpointError where the hub refuses or cannot be reached; the folder stays.
    """
    assert config.push is not None
    hub = _hub()
    by_hand = f"hf upload {config.push} {config.output} ." + (" --private" if not config.public else "")
    with _as_checkpoint_error(config.push, f" The folder is complete. To send it: {by_hand}"):
        hub.create_repo(config.push, private=not config.public, exist_ok=True)
        is_private = _is_private(hub, config.push)  # one that existed keeps what it was
        if not config.public and not is_private:
            raise _is_public(config.push)
        sent = hub.upload_folder(
            repo_id=config.push,
            folder_path=config.output,
            commit_message="Export",
            delete_patterns=None if config.adapters else _REPLACED,  # adapters may lie beside the model's weights
        )
    files = sum(1 for path in Path(config.output).rglob("*") if path.is_file())
    shown = "public" if not is_private else "private as before" if config.public else "private"
    return f"pushed    {files} files to {hub.endpoint}/{config.push} as {account}, {shown}\ncommit    {sent.oid}"


def _hub() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi()


def _is_private(hub: HfApi, name: str) -> bool:
    return bool(hub.repo_info(name).private)


def _is_public(name: str) -> ConfigError:
    return ConfigError(
        f"push={name} is a public repository, and public=false. Try public=true, or a repository of another name."
    )


@contextmanager
def _as_checkpoint_error(name: str, hint: str = "") -> Iterator[None]:
    """Turn whatever the hub's client raises into a CheckpointError that ends with `hint`, without the token."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # the client's errors have no class in common, and those of its HTTP library others
        raise CheckpointError(f"push={name} failed: {_reason(error)}.{hint}") from None


def _reason(error: BaseException) -> str:
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LocalTokenNotFoundError):
            return "no token was found. Log in by: hf auth login, or set HF_TOKEN"
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, which forbids requests. Unset it, or leave out push"
        if (status := getattr(getattr(cause, "response", None), "status_code", None)) is not None:
            return f"{constants.ENDPOINT} answers {status}: {_ANSWERS.get(status, _line(cause, get_token()))}"
        if type(cause).__name__ in ("ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError"):
            return f"{constants.ENDPOINT} cannot be reached ({_line(cause, get_token())}). Check the network"
        error, cause = cause, cause.__cause__
    return _line(error, get_token())  # of the innermost


def _line(error: BaseException, token: str | None) -> str:
    """Return an error's message in one line of at most 300 characters, the token hidden."""
    text = " ".join(str(error).split())
    if token:
        text = text.replace(token, "<token>")
    return printable(text, one_line=True)[:300].rstrip(".") or type(error).__name__
