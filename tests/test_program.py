"""The command `pretrain`: its overview, its errors, the project that it writes, and the names that texts give it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain import program
from pretrain.__main__ import COMMANDS, main
from pretrain.commands import init
from pretrain.program import as_typed, command

SOURCE = Path(program.__file__).parent
INSTALLED = "/opt/venv/bin/pretrain"


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the installed command; return its exit code."""
    monkeypatch.setattr(sys, "argv", [INSTALLED, *words])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_alone_it_lists_its_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(monkeypatch) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ")] == list(COMMANDS)
    assert typed(monkeypatch, "--help") == 0
    assert capsys.readouterr().out == shown
    assert typed(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("pretrain 0.")
    assert typed(monkeypatch, "prepare", "inspect", "--help") == 0  # as after the script of a clone
    assert capsys.readouterr().out.startswith("pretrain inspect [setting=value]")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["trian"], ["train", "model.n_layer=3"], ["model=gpt_nano"]])
def test_a_typing_error_is_refused_at_once_and_without_torch(words: list[str]) -> None:
    code = f"import sys, runpy; sys.argv[1:] = {words!r}\ntry: runpy.run_module('pretrain', "
    code += "run_name='__main__')\nfinally: assert 'torch' not in sys.modules"
    start = time.monotonic()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert time.monotonic() - start < 5  # on a busy machine; half a second on an idle one
    hint = {"trian": "trian is no command of pretrain. Did you mean train?"}
    assert found.stderr.startswith(f"ConfigError: {hint.get(words[0], words[-1].partition('=')[0])}")
    assert found.stderr.count("\n") == 1


def test_texts_name_the_command_that_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "python src/train.py a=1, python src/prepare.py inspect step=1, as for src/plan.py"
    monkeypatch.setattr(sys, "argv", [str(SOURCE.parent / "train.py")])
    assert (command("eval"), command("inspect")) == ("python src/eval.py", "python src/prepare.py inspect")
    assert as_typed(text) == text
    assert program.program("") == [sys.executable, str(SOURCE.parent / "train.py")]
    monkeypatch.setattr(sys, "argv", [INSTALLED])
    assert (command("eval"), command("inspect")) == ("pretrain eval", "pretrain inspect")
    assert as_typed(text) == "pretrain train a=1, pretrain inspect step=1, as for pretrain plan"
    assert program.program("train") == [sys.executable, INSTALLED, "train"]
    monkeypatch.setattr(sys, "argv", [str(SOURCE / "__main__.py")])
    assert command("eval") == "python -m pretrain eval"
    assert program.program("train") == [sys.executable, "-m", "pretrain", "train"]
    monkeypatch.setattr(sys, "argv", ["notebook"])
    assert command("eval") == "python src/eval.py"
    monkeypatch.setattr(program, "SCRIPTS", Path("/nowhere"))  # a wheel has no scripts
    assert command("eval") == "pretrain eval"


def test_init_writes_a_project_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed(monkeypatch, "init", "my project") == 0
    shown = capsys.readouterr().out
    written = {str(path.relative_to("my project")) for path in Path("my project").rglob("*") if path.is_file()}
    assert written == {
        "README.md", ".gitignore", "pretrain.yaml", "my_schedule.py", "configs/my_run.yaml",
        "configs/model/my_gpt.yaml", "texts/a_few_lines.txt",
    }  # fmt: skip
    assert all(f"wrote my project/{name}\n" in shown for name in written)
    assert shown.endswith("\nNext\n  cd 'my project'\n  pretrain train\n")
    assert Path("my project/README.md").read_text().startswith("# my project\n")
    before = {path: path.read_bytes() for path in Path("my project").rglob("*") if path.is_file()}
    Path("file").touch()
    for words, message in (
        (["my project"], "my project is there already, and init overwrites nothing. Name a new or an empty folder."),
        (["file"], "file is there already"),
        (["file/below"], "file/below cannot be written: "),
        ([], "init takes the name of one new folder, not nothing. Try pretrain init my_project"),
        (["a", "b"], "init takes the name of one new folder, not a b."),
        (["--force"], "init takes the name of one new folder, not --force."),
    ):
        assert typed(monkeypatch, "init", *words) == 2
        assert capsys.readouterr().err.startswith(f"ConfigError: {message}")
    assert before == {path: path.read_bytes() for path in Path("my project").rglob("*") if path.is_file()}
    Path("empty").mkdir()
    assert len(init.new_project(Path("empty"))) == len(written)
    for name, title in (("\udcff of bytes", "\\udcff of bytes"), ("of\nlines", "of\\nlines")):
        init.new_project(Path(name))
        assert (Path(name) / "README.md").read_text().startswith(f"# {title}\n")
    assert typed(monkeypatch, "init", "--help") == 0
