"""README and documentation are true: every command and Python block runs, links lead somewhere, names exist.

Commands run in forks of one warm process, at nano size, in a folder with the runs and files that the pages name. What
needs a GPU, the net or an extra is only composed. README is part of `make test`, the pages of `make test-long`.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from documentation import (
    LANGUAGES,
    README,
    ROOT,
    Block,
    Command,
    blocks,
    commands,
    pages,
)  # fmt: skip
from documented_files import write_inputs
from warm_process import WarmProcess

# what a test cannot run, as it changes the machine or serves without an end; each occurs in the texts
NOT_RUN = (
    "make train", "make wheel", "make docs", "source .venv/bin/activate", "pip install ", "tensorboard --logdir logs",
    "mlflow ui ",
)  # fmt: skip
NANO = [
    "data.max_validation_rows=4", "sample.max_new_tokens=4", "trainer.enable_progress_bar=false",
    "checkpoint.every_n_steps=100",
]  # fmt: skip
SMALL_TEXT = ["data=text_files", "data.path=general_texts"]
RUN = "prepared"  # stands for <time> in the names of runs
LIMIT_S = 500.0
# code of other programs, and of Python, that looks like a setting
FOREIGN = {
    "torch",
}
PAGES = [path.relative_to(ROOT).as_posix() for path in pages()]


class Workspace:
    """A folder as a reader has it: the scripts, some texts, and a finished run of each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone"
        self.pristine = folder / "pristine"
        self.process = WarmProcess()
        self.folder.mkdir()
        for name in ("src", "configs", "examples", "pyproject.toml"):
            (self.folder / name).symlink_to(ROOT / name)
        write_inputs(self.folder)

    def reset(self, everything: bool) -> None:
        """Bring back the prepared runs; `everything`: all kinds of them, not only a causal one."""
        if not (self.pristine / ("my_model" if everything else "logs")).exists():
            self._prepare(everything)
        shutil.rmtree(self.folder / "logs", ignore_errors=True)
        shutil.rmtree(self.folder / "my_model", ignore_errors=True)
        shutil.rmtree(self.folder / "my_project", ignore_errors=True)
        shutil.copytree(self.pristine, self.folder, dirs_exist_ok=True)

    def _prepare(self, everything: bool) -> None:
        shutil.rmtree(self.pristine, ignore_errors=True)
        shutil.rmtree(self.folder / "logs", ignore_errors=True)
        run = ["python", "src/train.py", *NANO, "trainer.max_steps=3"]
        if everything:
            self.do([*run, *SMALL_TEXT, "model=bert_nano", f"paths.run_dir=logs/bert_nano/{RUN}"])
            self.do([*run, *SMALL_TEXT, "model=diffusion_nano", f"paths.run_dir=logs/diffusion_nano/{RUN}"])
            base = [f"init_from=logs/bert_nano/{RUN}", "data.path=train.tsv", "data.validation_path=dev.tsv"]
            self.do([*run, "experiment=classify", *base, f"paths.run_dir=logs/classify/{RUN}"])
        self.do([*run, *SMALL_TEXT, f"paths.run_dir=logs/gpt_nano/{RUN}"])  # the newest: what `auto` means
        if everything:
            self.do(["python", "src/export.py", "output=my_model"])
            shutil.copytree(self.folder / "my_model", self.pristine / "my_model")
        shutil.copytree(self.folder / "logs", self.pristine / "logs")

    def do(self, words: list[str]) -> None:
        done = self.process.run(words, self.folder, limit_s=LIMIT_S)
        assert done.exit_code == 0, f"{words}\n{done.output}"

    def failures(self, some: list[Block]) -> list[str]:
        """Run the blocks of a page in their order; return what failed, with the end of its output."""
        failed: list[str] = []
        for block in some:
            if block.language == "python":
                failed += self._failure(str(block), ["python", "-c", block.text], {})
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
        return self._failure(where, shortened(command), command.environment)

    def _failure(self, where: str, words: list[str], environment: dict[str, str]) -> list[str]:
        words = [word.replace("<time>", RUN) for word in words]
        done = self.process.run(words, self.folder, limit_s=LIMIT_S, environment=environment)
        print(f"{done.seconds:6.1f} s  {where}")
        return [f"{where}\n  exit code {done.exit_code}\n{done.output[-1500:]}"] if done.exit_code else []


def composed(command: Command) -> str:
    """Return Python code that composes and checks the settings of a command, without Hydra's launchers."""
    return f"""
from pretrain.commands import tasks
from pretrain.config.command_line import parse
from pretrain.config.compose import compose, register_schemas, sweep_words
from pretrain.config.overrides import first_values, quote

command = tasks._COMMANDS[{command.name!r}]
register_schemas({command.name!r}, command.config_class)
given = parse([quote(word, command.free_text) for word in {command.overrides!r}])
words = [word for word in given.overrides if not word.lstrip("+").startswith("hydra")]
if given.multirun:
    words = [word for word in words if "interval(" not in word]
    words = first_values(sweep_words({command.name!r}, words))
compose({command.name!r}, [word for word in words if not word.startswith("resume=")])
"""


def shortened(command: Command) -> list[str]:
    """Return the words of a command with a small size behind them."""
    words, keys = command.words, {word.partition("=")[0].lstrip("+") for word in command.overrides}
    if {"--cfg", "--help", "--info"} & keys:
        return words
    own_text = any(key in ("data", "experiment", "resume") or key.startswith("data.") for key in keys)
    small = [] if own_text else SMALL_TEXT
    match command.name:
        case "train":
            return [*words, *small, *NANO, f"trainer.max_steps={5 if 'resume' in keys else 2}"]
        case "doctor" | "prepare":
            return [*words, *small] if "doctor" not in keys or "resume" not in keys else words
        case "generate":
            return [*words, "max_new_tokens=5"]
        case "eval" if not keys & {"task", "tasks"}:
            return [*words, "max_rows=4"]
    return words


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    made = Workspace(tmp_path_factory.mktemp("documentation"))
    yield made
    made.process.close()


def of_page(name: str) -> list[Block]:
    return blocks(ROOT / name)


def test_every_command_and_block_of_the_readme_runs(workspace: Workspace) -> None:
    workspace.reset(everything=False)
    assert workspace.failures(of_page("README.md")) == []


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
