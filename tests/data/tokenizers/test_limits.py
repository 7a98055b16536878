"""An untrusted tokenizer is refused in one line before it takes memory or time, whatever its files hold."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizer_kinds import KINDS, ROLES
from tokenizers import Regex, normalizers, pre_tokenizers

from pretrain.data.tokenizers.limits import check_tokenizer
from pretrain.data.tokenizers.rust_calls import suppressed_panics
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import DataError

STATES: dict[str, Any] = {kind: json.loads(make().to_str()) for kind, make in KINDS.items()}


def load(folder: Path, state: Any) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf8")
    (folder / "tokenizer_config.json").write_text(json.dumps(ROLES), encoding="utf8")
    return Tokenizer.load(folder)


def replaced(kind: str = "llama", **parts: Any) -> dict[str, Any]:
    return copy.deepcopy(STATES[kind]) | parts


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def with_token(name: str, number: Any) -> dict[str, Any]:
    state = replaced()
    state["model"]["vocab"][name] = number
    return state


FIVE = [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}] * 5
NFKC_THEN_SPACES = sequence(replace("a", "\ufdfa" * 21), {"type": "NFKC"}, replace(" ", "b" * 60))
REFUSED: list[tuple[Any, str]] = [
    (with_token("zzzz", 4_000_000_000), r"its token 'zzzz' has the id 4000000000, but ids of its \d+ tokens must be"),
    (with_token("zzzz", -1), r"has the id -1"),
    (with_token("zzzz", "x" * 1000), r"has the id 'x{39}, but"),
    (with_token("é" * 40_000, 100), r"its token '.*'\.\.\. exceeds the limit of 65,536 bytes"),
    (replaced(added_tokens=[{"content": "far", "id": 4_000_000_000}]), r"its token 'far' has the id 4000000000"),
    (
        replaced(normalizer=sequence(*[replace("a", "a" * 200)] * 4)),
        r"its normalizer turns 'a' into more than 64 bytes",
    ),
    (
        replaced(normalizer=sequence(*[replace("a", "aa", "Regex")] * 9)),
        r"turns 'one character' into more than 64 bytes",
    ),
    (replaced(normalizer=NFKC_THEN_SPACES), r"its normalizer turns 'a' into more than 64 bytes"),
    (
        replaced(normalizer=replace("a", "b" * 1001)),
        r"its normalizer has a replacement of 1,001 bytes; the limit is 1,000",
    ),
    (replaced(normalizer=sequence(*[{"type": "Prepend", "prepend": "x" * 999}] * 2)), r"into more than 1,000 bytes"),
    (
        replaced(decoder={"type": "Sequence", "decoders": [replace("a", "a" * 65)]}),
        r"its decoder turns 'a' into more than 64",
    ),
    (
        replaced(pre_tokenizer={"type": "Sequence", "pretokenizers": FIVE}),
        r"its pre_tokenizer has 5 ByteLevel steps; the limit is 4",
    ),
    (replaced(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}), r"is not a table of characters"),
    (replaced(normalizer={"type": "Precompiled", "precompiled_charsmap": "?"}), r"precompiled_charsmap is not base64"),
    (replaced(normalizer={"type": "Replace", "pattern": 5, "content": "x"}), r"does not have a tokenizer's form"),
    (
        replaced("word piece", model=STATES["word piece"]["model"] | {"max_input_chars_per_word": 10**9}),
        r"take minutes",
    ),
    ([], r"it has no tokenizer model"),
    (json.loads("[" * 90 + "]" * 90), r"it has no tokenizer model"),
    (replaced(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}), r"tokenizer\.json is damaged"),
]


@pytest.mark.parametrize(("state", "message"), REFUSED)
def test_a_tokenizer_beyond_the_limits_is_refused(tmp_path: Path, state: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, state)


@pytest.mark.parametrize("kind", KINDS)
def test_valid_tokenizers_are_within_the_limits(tmp_path: Path, kind: str) -> None:
    check_tokenizer(STATES[kind])
    loaded = load(tmp_path, STATES[kind])
    assert loaded.encode("the quick fox") == Tokenizer(KINDS[kind](), ROLES).encode("the quick fox")


def catastrophic() -> dict[str, Any]:
    """Return a tokenizer whose pattern backtracks so long that the library panics on a run of letters."""
    inner = KINDS["metaspace bpe"]()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("(a|aa)+$"), "isolated")
    return dict(json.loads(inner.to_str()))


def test_a_panic_of_the_library_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.path=.* cannot be used: .*retry-limit-in-match") as caught:
        load(tmp_path, catastrophic())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_other_output_to_stderr_is_delayed_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    with suppressed_panics():
        os.write(2, b"a line\n")
    assert capfd.readouterr().err == "a line\n"
    with pytest.raises(KeyboardInterrupt), suppressed_panics():
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_panic_after_loading_is_a_data_error(capfd: pytest.CaptureFixture[str]) -> None:
    inner = KINDS["metaspace bpe"]()
    inner.normalizer = normalizers.Replace(Regex("(a|aa)+$"), "b")
    ours = Tokenizer(inner, ROLES)
    text = "a" * 200 + "!"
    for use in (ours.encode, ours.encode_prompt, lambda text: ours.encode_documents([text, text])):
        with pytest.raises(DataError, match=r"the tokenizer cannot encode .*retry-limit-in-match over\. Name another"):
            use(text)
    with pytest.raises(DataError, match=r"the tokenizer cannot decode ids such as \[-1\]"):
        ours.decode([-1])
    assert capfd.readouterr().err == ""


def test_a_process_without_stderr_can_suppress_panics() -> None:
    code = (
        "from pretrain.data.tokenizers.rust_calls import suppressed_panics\nos.close(2)\n"
        "with suppressed_panics(): print(5)"
    )
    ran = subprocess.run([sys.executable, "-c", f"import os\n{code}"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "5\n")


def test_a_tokenizer_that_takes_minutes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretrain.data.tokenizers import load as tokenizer_files

    monkeypatch.setattr(tokenizer_files, "MAX_TRIAL_S", -1.0)
    with pytest.raises(DataError, match=r"cannot be used: it takes over -1 seconds for \d+ characters"):
        load(tmp_path, STATES["llama"])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_only_regular_files_are_read(tmp_path: Path, name: str) -> None:
    load(tmp_path, STATES["llama"])
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name} is damaged .* it is a FIFO, and only a regular file is read here"):
        Tokenizer.load(tmp_path)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON file, but only 12 of a list or a vocabulary."""
    yield path
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in items[:12]:
        yield from leaves(inner, (*path, key))


def with_leaf(state: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(state)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return changed


WRONG: list[Callable[[], Any]] = [
    lambda: None,
    lambda: -1,
    lambda: 2**63,
    lambda: "x\x1b[31m",
    list,
    dict,
    lambda: 1e300,
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "unigram", "word piece", "byte level"])
def test_any_value_of_a_wrong_type_ends_in_one_line(tmp_path: Path, kind: str, capfd: Any) -> None:
    state, messages = STATES[kind], []
    for number, path in enumerate(list(leaves(state))[1:]):
        for wrong in (WRONG[number % len(WRONG)], WRONG[(number + 3) % len(WRONG)]):
            try:
                load(tmp_path, with_leaf(state, path, wrong())).encode_documents(["the quick </s> fox"])
            except DataError as error:
                messages.append(str(error))
    assert len(messages) > 10
    assert not any("\x1b" in line or "\n" in line for line in messages)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("config", [{"strip_accents": "x"}, {"eos_token": [1]}, {"sep_token": {"content": 5}}])
def test_settings_of_a_wrong_type_are_refused(tmp_path: Path, config: Any) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\nfox\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"its strip_accents is 'x'|has no token that ends a document"):
        Tokenizer.load(tmp_path)
