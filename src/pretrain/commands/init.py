"""`pretrain init my_project`: write a small project that runs. Nothing in it is executed before the user does so."""

from __future__ import annotations

import shlex
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from pretrain.errors import ConfigError, message_of, show, visible
from pretrain.program import command

_TEMPLATE = files("pretrain") / "commands" / "new_project"
_HELP = """pretrain init <folder>

Writes a small project into a new or empty folder: a config of your own, a model preset, a plug-in, a README.
Nothing is overwritten."""


def main() -> None:
    """Write the project that the command line names and say what to type next; exits with 2 where it cannot be."""
    words = sys.argv[2:]
    if words in (["-h"], ["--help"]):
        show(_HELP)
        return
    try:
        if len(words) != 1 or words[0].startswith("-") or "=" in words[0]:
            typed = " ".join(words) or "nothing"
            raise ConfigError(f"init takes the name of one new folder, not {typed}. Try {command('init')} my_project")
        written = new_project(Path(words[0]))
    except ConfigError as error:
        print(message_of(error), file=sys.stderr)
        sys.exit(error.exit_code)
    show("\n".join([f"wrote {path}" for path in written]))
    show(f"\nNext\n  cd {shlex.quote(words[0])}\n  {command('train')}")


def new_project(folder: Path) -> list[Path]:
    """Write a project into a folder and return its files; raises ConfigError unless the folder is new or empty."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is there already, and init overwrites nothing. Name a new or an empty folder.")
        written, title = [], visible(folder.absolute().name, one_line=True)  # a name may be no text, or lines
        for parts, source in _files(_TEMPLATE, ()):
            name = {"gitignore": ".gitignore"}.get(parts[-1], parts[-1])
            path = folder.joinpath(*parts[:-1], name)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = source.read_text(encoding="utf8").replace("# {name}", f"# {title}", 1)
            with path.open("x", encoding="utf8") as file:
                file.write(text)
            written.append(path)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}. Name another folder.") from error
    return written


def _files(folder: Traversable, above: tuple[str, ...]) -> list[tuple[tuple[str, ...], Traversable]]:
    found = []
    for each in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if each.name != "__pycache__":
            path = (*above, each.name)
            found += _files(each, path) if each.is_dir() else [(path, each)]
    return found
