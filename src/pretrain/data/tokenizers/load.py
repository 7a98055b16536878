"""Load published tokenizers from a folder in one of three forms, or from the hub."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.data.tokenizers.limits import check_tokenizer, check_vocabulary
from pretrain.data.tokenizers.rust_calls import library_errors, suppressed_panics
from pretrain.errors import DataError, printable, shown
from pretrain.files.untrusted_files import parse_json, read_text

MAX_JSON_BYTES = 64_000_000
MAX_TRIAL_S = 5.0  # thread time for all TRIAL_TEXTS
CHAT_TEMPLATE = "chat_template.jinja"
NAMES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt",
    CHAT_TEMPLATE,
)  # fmt: skip
NAME_ANOTHER = "Name another tokenizer.path."
TRIAL_TEXTS = (
    "The quick brown fox, 1234.",
    "a" * 200 + "!",
    " " * 100 + "\n" * 100 + "x",
    "1" * 100,
    "日本語 naïve e\u0301 😀\x00",
)

# Usual token of each role, for folders that name none.
USUAL_TOKENS = {
    "bos_token": ("<|endoftext|>", "<s>"),
    "eos_token": ("<|endoftext|>", "</s>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "pad_token": ("[PAD]", "<pad>", "<|padding|>"),
    "mask_token": ("[MASK]", "<mask>"),
    "unk_token": ("[UNK]", "<unk>"),
}


def find_tokenizer(path: str, revision: str | None) -> Path:
    """Return the folder of a tokenizer: `path` itself, or the hub repository's download.

    Raises DataError if neither exists.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or path.startswith(("/", ".", "~")):
        raise DataError(
            f"tokenizer.path={printable(path)} is not a folder. Name a folder that holds tokenizer.json, or a hub name "
            "such as openai-community/gpt2."
        )
    return _fetch(path, revision)


def _fetch(path: str, revision: str | None) -> Path:
    """Return the folder of a hub repository's tokenizer files, downloaded or cached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    fetched, reason = "", ""
    try:
        for name in NAMES:
            try:
                fetched = hf_hub_download(path, name, revision=revision)
            except EntryNotFoundError as error:  # most repositories hold only some of the names
                if isinstance(error, LocalEntryNotFoundError) and not _may_be_missing(path, name, revision):
                    raise
                reason = str(error)
    except (OSError, ValueError) as error:
        fetched, reason = "", str(error)
    if not fetched:
        raise DataError(
            f"tokenizer.path={printable(path)} (tokenizer.revision={shown(revision)}) is neither a folder nor on the "
            f"hub: {' '.join(reason.split())} Check the name, or name a folder that holds tokenizer.json."
        )
    return Path(fetched).parent


def _may_be_missing(path: str, name: str, revision: str | None) -> bool:
    """Return whether to go on without a file for which the hub was not reached.

    Without a vocabulary, reading fails. The others say which tokens are special: without one that is there, the
    tokenizer would be another, so it must be known that there is none.
    """
    from huggingface_hub import _CACHED_NO_EXIST, is_offline_mode, try_to_load_from_cache

    is_known = try_to_load_from_cache(path, name, revision=revision) is _CACHED_NO_EXIST
    return is_known or is_offline_mode() or name in ("vocab.json", "merges.txt", "vocab.txt")


def read_folder(folder: Path) -> tuple[Any, dict[str, str]]:
    """Return the `tokenizers.Tokenizer` of a folder and its tokens by role, eos_token or sep_token included.

    Raises DataError that names the damaged file.
    """
    config = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").exists():
        inner = _parse_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        inner = _build_byte_level(folder, config)
    elif (folder / "vocab.txt").exists():
        inner = _build_word_piece(folder, config)
    else:
        raise DataError(
            f"tokenizer.path={printable(folder)} holds no tokenizer. "
            "Name a folder that holds tokenizer.json, vocab.json with merges.txt, or vocab.txt."
        )
    roles = _roles(config, inner)
    if not roles.keys() & {"eos_token", "sep_token"}:
        raise DataError(
            f"tokenizer.path={printable(folder)} has no token that ends a document: its vocabulary holds neither its "
            'eos_token nor its sep_token. Name one in tokenizer_config.json, such as {"eos_token": "<|endoftext|>"}.'
        )
    _add_special_tokens(inner, roles)
    if inner.post_processor is None and not (folder / "tokenizer.json").exists():
        _frame_texts(inner, roles)
    return inner, roles


def read_chat_template(folder: Path) -> str | None:
    """Return the chat template of a tokenizer's folder, a Jinja text that is not run here; None if it has none."""
    if (folder / CHAT_TEMPLATE).exists():
        return _read_text(folder / CHAT_TEMPLATE)
    named = _read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(named, list):  # several by name
        entries = [each for each in named if isinstance(each, dict) and each.get("name") == "default"]
        named = entries[0].get("template") if entries else None
    return named if isinstance(named, str) else None


def _read_text(path: Path) -> str:
    try:
        return read_text(path, MAX_JSON_BYTES)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    reason = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else f"{error}"
    return DataError(f"{printable(path)} is damaged or not a tokenizer file: {printable(reason)}. {NAME_ANOTHER}")


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file, empty if the file does not exist."""
    if not path.exists():
        return {}
    text = _read_text(path)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(value, dict):
        raise _damaged(path, TypeError("it is no JSON object"))
    return value


def _parse_tokenizer_json(path: Path) -> Any:
    """Return the `tokenizers.Tokenizer` of a tokenizer.json; raise DataError if it is beyond the limits."""
    from tokenizers import Tokenizer as Inner

    text = _read_text(path)
    with suppressed_panics(), library_errors(f"{printable(path)} is damaged or not a tokenizer file", NAME_ANOTHER):
        check_tokenizer(parse_json(text))
        return Inner.from_str(text)


def check_usable(folder: Path, round_trip: Callable[[str], object]) -> None:
    """Encode and decode TRIAL_TEXTS; raise DataError if the library panics or takes seconds for them.

    A tokenizer that only cannot encode some of them, such as a word list without an unknown token, may suit other
    texts.
    """
    problem = f"tokenizer.path={printable(folder)} cannot be used"
    started_s = time.thread_time()
    for text in TRIAL_TEXTS:
        try:
            round_trip(text)
        except DataError as error:
            if not isinstance(error.__cause__, Exception):
                raise DataError(f"{problem}: {error}") from error
        if time.thread_time() - started_s > MAX_TRIAL_S:
            raise DataError(
                f"{problem}: it takes over {MAX_TRIAL_S:.0f} seconds for {len(text)} characters. {NAME_ANOTHER}"
            )


def _build_byte_level(folder: Path, config: dict[str, Any]) -> Any:
    """Return the byte-level BPE of GPT-2 and RoBERTa from its two files."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    vocab = _read_json(folder / "vocab.json")
    try:
        check_vocabulary(vocab)
    except ValueError as error:
        raise _damaged(folder / "vocab.json", error) from error
    lines = _read_text(folder / "merges.txt").replace("\r\n", "\n").split("\n")
    merges: list[Any] = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    problem = f"{printable(folder / 'vocab.json + merges.txt')} is damaged or not a tokenizer file"
    with suppressed_panics(), library_errors(problem, NAME_ANOTHER):
        inner = Inner(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    inner.decoder = decoders.ByteLevel()
    return inner


def _build_word_piece(folder: Path, config: dict[str, Any]) -> Any:
    """Return BERT's WordPiece from its vocabulary, one token a line."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    tokens = _read_text(folder / "vocab.txt").replace("\r\n", "\n").removesuffix("\n").split("\n")
    if "[UNK]" not in tokens:
        raise _damaged(folder / "vocab.txt", ValueError("it has no line [UNK]"))
    vocab = {token: index for index, token in enumerate(tokens)}
    accents = config.get("strip_accents")
    if not isinstance(accents, bool | None):
        raise _damaged(folder / "tokenizer_config.json", ValueError(f"its strip_accents is {accents!a:.40}"))
    with suppressed_panics(), library_errors(f"{printable(folder / 'vocab.txt')} cannot be used", NAME_ANOTHER):
        inner = Inner(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=accents,
        lowercase=bool(config.get("do_lower_case", True)),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return inner


def _frame_texts(inner: Any, roles: dict[str, str]) -> None:
    """Put cls_token and sep_token around a text, as BERT and RoBERTa do; vocabulary files alone do not say so."""
    from tokenizers import decoders, processors

    if not {"cls_token", "sep_token"} <= roles.keys():
        return
    first, last = ((roles[role], inner.token_to_id(roles[role])) for role in ("cls_token", "sep_token"))
    is_byte_level = isinstance(inner.decoder, decoders.ByteLevel)
    inner.post_processor = (processors.RobertaProcessing if is_byte_level else processors.BertProcessing)(last, first)


def _roles(config: dict[str, Any], inner: Any) -> dict[str, str]:
    """Return the token of each role, from the folder's settings or by its usual name."""
    vocab = inner.get_vocab(with_added_tokens=True)
    roles = {}
    for role, usual in USUAL_TOKENS.items():
        named = config.get(role)
        token = named.get("content") if isinstance(named, dict) else named
        if token is None and not any(config.get(key) for key in ("eos_token", "sep_token")):
            token = next((name for name in usual if name in vocab), None)
        if isinstance(token, str) and token in vocab:
            roles[role] = token
    return roles


def _add_special_tokens(inner: Any, roles: dict[str, str]) -> None:
    """Mark the roles' tokens as special; a byte-level mask takes the space before it (RoBERTa)."""
    from tokenizers import AddedToken, decoders

    byte_level = isinstance(inner.decoder, decoders.ByteLevel)
    special = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
    for role, token in roles.items():
        if token not in special:
            lstrip = byte_level and role == "mask_token"
            inner.add_special_tokens([AddedToken(token, special=True, normalized=False, lstrip=lstrip)])
