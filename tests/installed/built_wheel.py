"""A wheel of this checkout, built without isolation and installed beside the libraries that the tests run with."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_A_WHEEL = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "src", "configs")


def build(folder: Path) -> Path:
    """Return a wheel of a copy of the checkout: files of earlier builds are left out."""
    copy = folder / "checkout"
    copy.mkdir()
    for name in OF_A_WHEEL:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, copy / name)
    words = ["wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], check=True)
    return next(folder.glob("pretrain-*.whl"))


def without_checkout() -> dict[str, str]:
    """Return the environment without PYTHONPATH and the like, by which the checkout could be found."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


class Installed:
    """An environment with the wheel in it, and a folder outside the checkout in which commands are typed."""

    def __init__(self, folder: Path) -> None:
        self.environment = folder / "environment"
        self.folder = folder / "work"
        self.folder.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.environment)], check=True)
        python = self.environment / "bin" / "python"
        wheel = build(folder)
        words = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
        subprocess.run(pip, check=True, env=without_checkout())
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        beside = self.environment / "lib" / version / "site-packages" / "beside.pth"
        beside.write_text(sysconfig.get_path("purelib") + "\n")  # torch and the like; its own .pth files are not read

    def type(self, *words: str, within: Path | None = None, code: int = 0) -> str:
        """Type `pretrain` with these words; return what it printed. Fails unless it ends with `code`."""
        environment = without_checkout() | {"PATH": f"{self.environment / 'bin'}:{os.environ['PATH']}"}
        found = subprocess.run(
            ["pretrain", *words],
            cwd=within or self.folder, env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert found.returncode == code, found.stdout + found.stderr
        assert "python src/" not in found.stdout + found.stderr
        return found.stdout if code == 0 else found.stderr
