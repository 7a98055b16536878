"""README and documentation are true: every command and Python block runs, links lead somewhere, names exist.

Commands run in forks of one warm process, at nano size, in a folder with the runs and files that the pages name. What
needs a GPU, the net or an extra is only composed. README is part of `make test`, the pages of `make test-long`.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import forked_process
import pytest
import yaml
from documentation import (
    LANGUAGES,
    README,
    ROOT,
    Block,
    Command,
    blocks,
    broken_links,
    code_spans,
    commands,
    links,
    pages,
    sentences,
)
from documented_files import write_inputs

from pretrain.__main__ import COMMANDS
from pretrain.commands import tasks
from pretrain.config.preset_folders import CONFIG_FOLDER
from pretrain.config.settings_help import settings_page
from pretrain.config.stages import ENDS

# what a test cannot run, as it changes the machine or serves without an end; each occurs in the texts
NOT_RUN = (
    "aws s3 cp",  # needs a bucket
    "make train", "make install", "make wheel", "make bench", "source .venv/bin/activate", "source .venv-",
    "python3.11 -m venv .venv-", "pip install ", "tensorboard --logdir logs",
    "mlflow ui ", "docker build ", "docker run ", "sky jobs launch ", "hf auth login",
    "python llama.cpp/", "llama.cpp/build/", "vllm serve ",
)  # fmt: skip
NANO = [
    "data.max_validation_rows=4", "sample.max_new_tokens=4", "trainer.enable_progress_bar=false",
    "checkpoint.every_n_steps=100",
]  # fmt: skip
SMALL_TEXT = ["data=text_files", "data.path=general_texts"]
RUN = "prepared"  # stands for <time> in the names of runs
LIMIT_S = 500.0
# what looks like a setting in inline code, and is Python's or stands for any name; each occurs in the texts
FOREIGN = ("bounds", "group", "key", "setting", "group.setting", "char_duplicates_ratio", "filter_no_terminal_punct")
# words that the field has another word for, where they have no other meaning; and British spellings
REPLACED = (
    "quicken", "likeliest", "learnt", "by heart", "never_said", "ended_by", "make_batch", "causal_rows",
    "from_the_left", "masks_in_blocks", "final_share", "decay_share", "mask_share", "random_share", "head_width",
    "norm_place", "global_every", "first_values", "materialiser", "own_pieces", "reduce_once_a_step",
    "looks_at_gradient", "check_room", "rehearsal", "tokenise", "tokenising", "quantis", "labelled",
    "utilisation", "normalis", "dequantis", "optimis", "neighbour", "colour", "behaviour",
)  # fmt: skip
# by examples/extend, and a preset that scale writes
REGISTERED = ("convolution", "second_half", "sums", "characters", "lion", "inverse_root", "recommended")
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf8"), re.M))
PAGES = [path.relative_to(ROOT).as_posix() for path in pages()]


class Workspace:
    """A folder as a reader has it: the scripts, some texts, and a finished run of each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone"
        self.pristine = folder / "pristine"
        self.folder.mkdir()
        for name in ("src", "configs", "examples", "pyproject.toml"):
            (self.folder / name).symlink_to(ROOT / name)
        write_inputs(self.folder)

    def reset(self, everything: bool) -> None:
        """Bring back the prepared runs; `everything`: all kinds of them, not only a causal and a masked one."""
        if not (self.pristine / ("my_model" if everything else "logs")).exists():
            self._prepare(everything)
        for name in ("logs", "my_model", "my_project", "my_export", "corpora"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(self.pristine, self.folder, dirs_exist_ok=True)

    def _prepare(self, everything: bool) -> None:
        shutil.rmtree(self.pristine, ignore_errors=True)
        shutil.rmtree(self.folder / "logs", ignore_errors=True)
        run = ["python", "src/train.py", *NANO, "trainer.max_steps=3"]
        self.do([*run, *SMALL_TEXT, "model=bert_nano", f"paths.run_dir=logs/bert_nano/{RUN}"])
        if everything:
            self.do([*run, *SMALL_TEXT, "model=diffusion_nano", f"paths.run_dir=logs/diffusion_nano/{RUN}"])
            base = [f"init_from=logs/bert_nano/{RUN}", "data.path=train.tsv", "data.validation_path=dev.tsv"]
            self.do([*run, "experiment=classify", *base, f"paths.run_dir=logs/classify/{RUN}"])
        self.do([*run, *SMALL_TEXT, f"paths.run_dir=logs/gpt_nano/{RUN}"])  # the newest: what `auto` means
        if everything:
            self.do(["python", "src/export.py", "output=my_model"])
            shutil.copytree(self.folder / "my_model", self.pristine / "my_model")
        shutil.copytree(self.folder / "logs", self.pristine / "logs")

    def run(self, words: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run `python ...` or `pretrain ...`; what is still running after LIMIT_S fails the test."""
        program, *rest = words
        script = {"python": [], "pretrain": [Path(sys.executable).with_name("pretrain")]}[program]
        return forked_process.run(
            [sys.executable, *script, *rest], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=LIMIT_S, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")} | (environment or {}),
        )  # fmt: skip

    def do(self, words: list[str]) -> None:
        done = self.run(words)
        assert done.returncode == 0, f"{words}\n{done.stdout}"

    def failures(self, some: list[Block]) -> list[str]:
        """Run the blocks of a page in their order; return what failed, with the end of its output."""
        failed: list[str] = []
        for block in some:
            if block.language == "python" and not block.included:  # a command below runs the file
                text = f"compile({block.text!r}, 'page', 'exec')" if block.only_composes else block.text
                failed += self._failure(str(block), ["python", "-c", text], {})
            elif block.language == "bash":
                for command in commands(block):
                    failed += self._of_command(command)
        return failed

    def _of_command(self, command: Command) -> list[str]:
        where = f"{command.block}: {command.line}"
        if not command.is_ours or command.words[0] == "pip":
            return [] if command.line.startswith(NOT_RUN) else [f"{where} is neither run nor listed in NOT_RUN"]
        if command.block.only_composes:
            return self._failure(where, ["python", "-c", composed(command)], {})
        if command.name == "export":  # which overwrites nothing
            for word in command.overrides:
                if word.startswith("output="):
                    shutil.rmtree(self.folder / word.removeprefix("output="), ignore_errors=True)
        return self._failure(where, shortened(command), command.environment)

    def _failure(self, where: str, words: list[str], environment: dict[str, str]) -> list[str]:
        words = [word.replace("<time>", RUN) for word in words]
        started = time.monotonic()
        done = self.run(words, environment)
        print(f"{time.monotonic() - started:6.1f} s  {where}")
        return [f"{where}\n  exit code {done.returncode}\n{done.stdout[-1500:]}"] if done.returncode else []


def composed(command: Command) -> str:
    """Return Python code that composes and checks the settings of a command, without launchers that are not ours."""
    return f"""
from pretrain.commands import tasks
from pretrain.config.command_line import as_list, parse
from pretrain.config.compose import compose, register_schemas, sweep_words
from pretrain.config.launcher import register_plugins
from pretrain.config.overrides import first_values, quote

command = tasks._COMMANDS[{command.name!r}]
register_schemas({command.name!r}, command.config_class)
register_plugins()
words = as_list({command.overrides!r}, command.positional)
given = parse([quote(word, command.free_text) for word in words])
words = [word for word in given.overrides if not word.lstrip("+").startswith("hydra")]
if given.multirun:
    words = [word for word in words if "interval(" not in word]
    words = first_values(sweep_words({command.name!r}, words))
compose({command.name!r}, [word for word in words if not word.startswith("resume=")])
"""


def shortened(command: Command) -> list[str]:
    """Return the words of a command with a small size after them."""
    words, keys = command.words, {word.partition("=")[0].lstrip("+") for word in command.overrides}
    if {"--cfg", "--help", "--info"} & keys:
        return words
    own_text = any(key in ("data", "experiment", "resume") or key.startswith("data.") for key in keys)
    small = [] if own_text else SMALL_TEXT
    match command.name:
        case "train":
            return [*words, *small, *NANO, f"trainer.max_steps={5 if 'resume' in keys else 2}"]
        case "scale":
            ladder = ["ladder.sizes=[1x16,2x32]", "ladder.tokens=[2000,4000]", "ladder.samples=10"]
            held_out = ["ladder.held_out=2x48"] if "ladder.held_out" in keys else []
            return [*words, *small, *NANO, "model.context_length=32", *ladder, *held_out, "logging.report=false"]
        case "doctor" | "prepare":
            return [*words, *small] if "doctor" not in keys or "resume" not in keys else words
        case "generate":
            return words if any("[MASK]" in word for word in words) else [*words, "max_new_tokens=5"]
        case "eval" if not keys & {"task", "tasks"}:
            return [*words, "max_rows=4"]
    return words


def known_settings() -> re.Pattern[str]:
    """Return what matches every setting of all commands, and the names of groups of presets."""
    of_runs = re.findall(r"^\| `([\w.<>]+)` \|", settings_page(), re.M)
    of_commands = [name for command in tasks._COMMANDS.values() for name in _names(command.config_class)]
    groups = [path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir()]
    names = {re.escape(name).replace("<name>", r"\w+") for name in (*of_runs, *of_commands, *groups)}
    # data.count: of examples/extend/my_data.py
    free = [
        r"(data\.)?sources\.\w+(\.\w+)*",
        r"data\.count",
        r"(callbacks|loggers)\.\w+\.init_args\.\w+",
        r"hydra[./].+",
    ]
    return re.compile("|".join([*sorted(names), *free]))


def _names(config_class: type, prefix: str = "") -> Iterator[str]:
    """Yield the names of a class's settings, and of those below them."""
    for name, kind in get_type_hints(config_class).items():
        if get_origin(kind) is ClassVar:
            continue
        yield prefix + name
        for below in (kind, *get_args(kind)):
            if is_dataclass(below):
                yield from _names(below, f"{prefix}{name}.")


def unknown_settings(text: str) -> list[str]:
    """Return the settings in a page's inline code that do not exist."""
    if "# Coming from another tool" in text:  # in its tables the first column is the other tool's
        text = re.sub(r"^\| .*? \|", "|", text, flags=re.M)
    head, begin, rest = text.partition("<!-- families -->")  # its table names settings of `model` without the group
    table, end, rest = rest.partition("<!-- end -->")
    text = head + begin + re.sub(r"`(\w+=)", r"`model.\1", table) + end + rest
    typed = [
        word for span in code_spans(text) for word in re.findall(r"(?:^|[\s'\"(])\+?([a-z_]+(?:[./][\w<>]+)*)=", span)
    ]
    return [word for word in map(_without_entry, typed) if not KNOWN.fullmatch(word) and word not in (*FOREIGN, *ENDS)]


def _without_entry(key: str) -> str:
    """Return what a setting of a stage changes, an end or a setting of the run, and the setting of a group's entry."""
    return re.sub(r"^(optimizer\.groups)\.\w+$", r"\1", re.sub(r"^stages\.\w+\.", "", key))


def unknown_arguments(command: Command) -> list[str]:
    """Return the arguments of a command that name no setting, or no preset of its group."""
    unknown = []
    for key, _, value in (word.lstrip("+").partition("=") for word in command.overrides if "=" in word):
        key = _without_entry(key)
        presets = {path.stem for path in (CONFIG_FOLDER / key).glob("*.yaml")}
        chosen = set(re.findall(r"\w+", value)) if presets else set()
        if not (KNOWN.fullmatch(key) or key in ENDS) or not chosen <= presets | set(REGISTERED):
            unknown.append(f"{key}={value}")
    return unknown


KNOWN = known_settings()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("documentation"))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_what_exists(name: str) -> None:
    """Its links lead somewhere, its settings and commands exist, its blocks have a language, its words are plain."""
    text = (ROOT / name).read_text(encoding="utf8")
    assert broken_links(ROOT / name) == []
    assert unknown_settings(text) == []
    typed = [command for block in of_page(name) if block.language == "bash" for command in commands(block)]
    assert [word for command in typed if command.is_ours for word in unknown_arguments(command)] == []
    assert [str(block) for block in of_page(name) if block.language not in LANGUAGES] == []
    assert [line for line in text.splitlines() if re.match(r" *```\w* +\S", line) and ' title="' not in line] == []
    assert [str(block) for block in of_page(name) if re.match(r"\s*-+8", block.text) and not block.included] == []
    assert [block.included for block in of_page(name) if not (ROOT / block.included).exists()] == []
    assert set(re.findall(r"`make ([\w-]+)", text)) <= TARGETS
    for path in re.findall(r"`((?:configs|docs|examples|src|notebooks|benchmarks|tests)/[\w/.-]+)`", text):
        assert "mine" in path or (ROOT / path).exists(), path
    assert [word for word in REPLACED if re.search(rf"\b{word}", text)] == []


def test_wrong_names_in_a_page_are_found() -> None:
    text = "`model.n_layer=3`, `'data.sources.mine={kind: text_files}'`, [a](nowhere.md), [b](README.md#nowhere)"
    assert unknown_settings(text) == ["model.n_layer"]
    assert broken_links(README, text) == ["nowhere.md", "README.md#nowhere"]
    block = "```bash\npython src/train.py model=gpt_smal model.n_layer=3 data.path=my_texts 'logger=[all,csv]'\n```\n"
    (command,) = commands(blocks(README, block)[0])
    assert unknown_arguments(command) == ["model=gpt_smal", "model.n_layer=3"]


def test_every_entry_of_what_is_not_run_occurs_in_the_texts() -> None:
    lines = [
        command.line
        for name in PAGES
        for block in of_page(name)
        if block.language == "bash"
        for command in commands(block)
    ]
    for entry in NOT_RUN:
        assert any(line.startswith(entry) for line in lines), f"{entry} is in no page: take it off the list"
    texts = "".join((ROOT / name).read_text(encoding="utf8") for name in PAGES)
    for word in FOREIGN:
        assert word in texts, word


def test_the_index_links_every_page() -> None:
    linked = links((ROOT / "docs" / "index.md").read_text(encoding="utf8"))
    expected = [name.removeprefix("docs/") for name in PAGES if name.startswith("docs/") and name != "docs/index.md"]
    assert sorted(expected) == sorted(page for page in linked if page.endswith(".md"))


GROUPS = ("model", "objective", "data", "tokenizer", "optimizer", "schedule", "trainer", "logger", "callbacks")


@pytest.mark.parametrize("group", GROUPS)
def test_the_table_of_presets_names_each(group: str) -> None:
    """The row of a group in `First run` has every preset of the folder of the group."""
    text = (ROOT / "docs" / "get-started" / "first-run.md").read_text(encoding="utf8")
    row = next(line for line in text.splitlines() if re.match(rf"\| .*`{group}`.* \|", line))
    presets = {path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml")}
    assert presets <= set(re.findall(r"`(\w+)`", row)), presets - set(re.findall(r"`(\w+)`", row))


def test_the_table_of_objectives_names_each() -> None:
    text = (ROOT / "docs" / "guides" / "objectives-and-masking.md").read_text(encoding="utf8")
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    assert {path.stem for path in (CONFIG_FOLDER / "objective").glob("*.yaml")} <= rows


def test_sentences_of_the_readme_are_short() -> None:
    lengths = [len(words) for words in sentences(README.read_text(encoding="utf8"))]
    assert len(lengths) > 20
    assert sum(lengths) / len(lengths) < 20


@pytest.mark.slow
def test_the_menu_has_every_page() -> None:
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf8"))["nav"]
    assert sorted(_pages_of(menu)) == sorted(name.removeprefix("docs/") for name in PAGES if name.startswith("docs/"))


def _pages_of(menu: Any) -> list[str]:
    if isinstance(menu, str):
        return [menu]
    return [page for each in (menu.values() if isinstance(menu, dict) else menu) for page in _pages_of(each)]


@pytest.mark.slow
def test_help_pages_are_current(workspace: Workspace) -> None:
    folder = ROOT / "docs" / "reference" / "help"
    assert {path.stem for path in folder.iterdir()} == set(COMMANDS)
    for name in COMMANDS:
        assert f"docs/reference/help/{name}.txt" in (folder.parent / "command-line.md").read_text(encoding="utf8")
        done = workspace.run(["pretrain", name, "--help"])
        assert done.stdout == (folder / f"{name}.txt").read_text(encoding="utf8"), f"{name}: make settings"


def of_page(name: str) -> list[Block]:
    return blocks(ROOT / name)


@pytest.mark.slow
def test_every_command_and_block_of_the_readme_runs(workspace: Workspace) -> None:
    workspace.reset(everything=False)
    assert workspace.failures(of_page("README.md")) == []


@pytest.mark.slow
def test_what_is_wrong_in_a_page_is_found(workspace: Workspace) -> None:
    """The test above can fail: a misspelled setting, a wrong value and code that raises are found, each by its line."""
    workspace.reset(everything=False)
    page = (
        "# Page\n\n```bash\npython src/train.py model.n_layer=3  # misspelled\n```\n\n"
        '```bash title="needs a GPU"\npython src/train.py trainer=ddp model.n_heads=7\n'
        "torchrun --nproc-per-node 8 src/train.py model=gpt_smal\n```\n\n"
        "```bash\nrm -r logs\n```\n\n```python\nfrom pretrain import LanguageModels\n```\n"
    )
    found = workspace.failures(blocks(README, page))
    assert [line.partition("\n")[0] for line in found] == [
        "README.md:3: python src/train.py model.n_layer=3  # misspelled",
        "README.md:7: python src/train.py trainer=ddp model.n_heads=7",
        "README.md:7: torchrun --nproc-per-node 8 src/train.py model=gpt_smal",
        "README.md:12: rm -r logs is neither run nor listed in NOT_RUN",
        "README.md:16",
    ]
    assert "Did you mean model.n_layers?" in found[0]
    assert "does not split into model.n_heads=7" in found[1] or "model.n_heads" in found[1]


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "name", [name for name in PAGES[1:] if any(b.language in LANGUAGES[:2] for b in of_page(name))]
)
def test_every_command_and_block_of_the_pages_runs(workspace: Workspace, name: str) -> None:
    workspace.reset(everything=True)
    assert workspace.failures(of_page(name)) == []
