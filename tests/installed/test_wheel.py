"""What an installed wheel does in a folder outside the repository."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from installed.built_wheel import ROOT, Installed, without_checkout

from pretrain.checkpoint.write import sealed

TINY = ["tokenizer=bytes", "model.n_layers=2", "model.d_model=32", "model.context_length=64", "trainer.max_steps=4",
        "trainer.accelerator=cpu", "trainer.precision=fp32", "sample.max_new_tokens=4"]  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_a_new_project_trains_and_generates(installed: Installed) -> None:
    (wheel,) = installed.folder.parent.glob("*.whl")
    inside = {name.removeprefix("pretrain/") for name in ZipFile(wheel).namelist()}
    presets = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(presets) > 60
    assert presets <= inside
    assert "py.typed" in inside
    assert "wrote demo/configs/my_run.yaml\n" in installed.type("init", "demo")
    demo = installed.folder / "demo"
    words = ["data=text_files", "data.path=texts", "batch_size=2", "schedule.warmup_steps=1", *TINY, "model.n_heads=2"]
    shown = installed.type("train", *words, "paths.run_dir=logs/run", within=demo)
    assert shown.startswith("pretrain.yaml: reads configs/my_run.yaml\n")
    assert "\n  pretrain generate checkpoint=logs/run prompt=The 'plugins=[my_schedule]'\n" in shown
    assert json.loads((demo / "logs" / "run" / "report.json").read_text())["steps"] == 4
    asked = ["generate", "prompt=The mill", "max_new_tokens=3"]
    assert installed.type(*asked, "plugins=[my_schedule]", within=demo).startswith("The mill")
    assert "Name it again: plugins=[my_schedule]" in installed.type(*asked, within=demo, code=4)


@pytest.mark.long
def test_every_command_of_its_readme_runs_in_a_new_project(installed: Installed) -> None:
    installed.type("init", "readme")
    project = installed.folder / "readme"
    lines = [line for line in (project / "README.md").read_text().splitlines() if line.startswith("pretrain ")]
    assert len(lines) == 6
    for line in lines:
        words = [word for word in shlex.split(line)[1:] if "max_steps" not in word]
        steps = 6 if "resume=auto" in words else 4
        installed.type(*words, *([f"trainer.max_steps={steps}"] if words[0] == "train" else []), within=project)


@pytest.mark.long
def test_all_commands_work_in_an_empty_folder(installed: Installed, corpus: Path) -> None:
    folder = installed.folder
    installed.type("train", "data=text_files", f"data.path={corpus}", *TINY, "paths.run_dir=logs/run")
    assert installed.type("generate", "prompt=The fox", "max_new_tokens=3").startswith("The fox")
    assert "bits_per_byte" in installed.type("eval", f"path={corpus}")
    installed.type("export", "output=exported")
    assert (folder / "exported" / "config.json").is_file()
    assert "parameters" in installed.type("plan", "model=gpt_nano", f"data.path={corpus}")
    assert "row " in installed.type("inspect", "step=1")
    assert "every file verified" in installed.type("prepare", f"data.path={corpus}", "tokenizer=bytes")
    shown = installed.type("train", "-m", "seed=1,2", "data=text_files", f"data.path={corpus}", *TINY)
    assert shown.count("Report") == 2
    assert "python -m" not in shown
    two = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "paths.run_dir=logs/two"]
    installed.type("train", "data=text_files", f"data.path={corpus}", *TINY, *two)
    assert ": pretrain train [group=preset] [setting=value] ...\n" in installed.type("train", "--help")
    installed.type("doctor", "doctor=data", "model=gpt_nano")


@pytest.mark.long
def test_what_a_hostile_folder_names_is_not_imported(installed: Installed, corpus: Path) -> None:
    """Neither by a checkpoint's settings, nor by config.yaml, nor by a pretrain.yaml in the folder."""
    folder = installed.folder / "hostile"
    folder.mkdir()
    installed.type("train", "data=text_files", f"data.path={corpus}", *TINY, "paths.run_dir=run", within=folder)
    (folder / "evil.py").write_text("open('imported', 'w')\nclass Callback: pass\n")
    (folder / "pretrain.yaml").write_text("config_dir: .\ngenerate: generate\n")
    (folder / "generate.yaml").write_text("defaults: [GenerateConfig, _self_]\nplugins: [evil]\n")
    manifest = folder / "run" / "checkpoints" / "step-00000004" / "manifest.json"
    record = json.loads(manifest.read_text())
    record["config"]["plugins"] = ["evil"]
    record["typed"] += ["plugins=[evil]"]
    settings = yaml.safe_load((folder / "run" / "config.yaml").read_text()) | {"plugins": ["evil"]}

    def use(code: int) -> None:
        manifest.write_text(json.dumps(sealed(record)))
        (folder / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
        for words in (["generate", "checkpoint=run"], ["eval", "checkpoint=run", f"path={corpus}"],
                      ["export", "checkpoint=run", f"output=exported_{code}"]):  # fmt: skip
            installed.type(*words, within=folder)
        installed.type("train", f"resume={folder / 'run'}", "trainer.max_steps=6", code=code)  # from another folder
        assert not (folder / "imported").exists()

    entry = {"kind": "class_path", "class_path": "evil.Callback", "init_args": {}}
    record["config"]["callbacks"] = settings["callbacks"] = {"x": entry}
    use(2)  # its class has to be named again
    record["config"]["callbacks"] = settings["callbacks"] = {}
    use(0)


@pytest.mark.long
def test_the_examples_run_outside_the_repository(installed: Installed, corpus: Path) -> None:
    """Each from its own copy, with the words that its first lines show."""
    names = sorted(path.stem for path in (ROOT / "examples" / "extend").glob("my_*.py"))
    assert len(names) == 9
    for name in names:
        folder = installed.folder / name
        folder.mkdir()
        shutil.copy(ROOT / "examples" / "extend" / f"{name}.py", folder)
        lines = (folder / f"{name}.py").read_text().splitlines()
        shown = next(line for line in lines if line.startswith("PYTHONPATH=examples/extend python src/"))
        words = shlex.split(shown.partition("src/")[2])[1:]
        text = [] if name == "my_data" else ["data=text_files", f"data.path={corpus}"]
        tokenizer = [] if name == "my_tokenizer" else ["tokenizer=bytes"]
        short = ["model.n_layers=2", "model.context_length=32", "trainer.max_steps=4", "sample.max_new_tokens=4"]
        if name == "my_task":
            installed.type("train", *text, *tokenizer, *short, within=folder)
            assert "right_sums/accuracy" in installed.type("eval", *words, within=folder)
        else:
            installed.type("train", *words, *text, *tokenizer, *short, within=folder)
            report = json.loads(next(folder.glob("logs/*/*/report.json")).read_text())
            assert report["steps"] == 4


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_fresh_environment_has_all_that_it_needs(installed: Installed, tmp_path: Path, corpus: Path) -> None:
    """`pip install pretrain-*.whl -c constraints.txt` in an environment with nothing else; downloads its libraries."""
    (wheel,) = installed.folder.parent.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "fresh")], check=True)
    constraints = str(ROOT / "constraints.txt")
    pip = [str(tmp_path / "fresh" / "bin" / "pip"), "install", "--quiet", str(wheel), "--constraint", constraints]
    subprocess.run(pip, check=True, env=without_checkout())
    command = [str(tmp_path / "fresh" / "bin" / "pretrain"), "train", *TINY, f"data.path={corpus}"]
    subprocess.run(command, check=True, cwd=tmp_path, env=without_checkout())
    assert list(tmp_path.glob("logs/*/*/report.json"))
