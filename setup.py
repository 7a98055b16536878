"""Puts the presets of configs/ into the wheel, as the package pretrain.configs; all else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class WithPresets(build_py):
    """Copies the YAML files as well; an editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._presets().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else self._presets().values())]

    def _presets(self) -> dict[str, str]:
        target = Path(self.build_lib) / "pretrain"
        return {str(path): str(target / path.relative_to(ROOT)) for path in sorted((ROOT / "configs").rglob("*.yaml"))}


setup(cmdclass={"build_py": WithPresets})
