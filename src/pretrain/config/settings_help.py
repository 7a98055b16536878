"""What `--help` and docs/reference/settings.md print: every setting with its value, one line of help, unit and range.

`python -m pretrain.config.settings_help` prints the page.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from string import Template
from typing import Any

from pretrain.config.declared import alternatives, type_hints
from pretrain.config.named_entries import CALLBACKS, LOGGERS
from pretrain.config.registry import choices, groups
from pretrain.config.run import RunConfig
from pretrain.config.setting import Description, description
from pretrain.errors import printable, shown
from pretrain.program import as_typed
from pretrain.training.config import StageEnd

_COLUMN = 44  # at which the help of a setting starts


@dataclass(frozen=True)
class _Row:
    """A setting with what is printed about it."""

    key: str
    value: str
    text: Description
    values: list[str]  # of an enumeration; else empty

    def notes(self) -> str:
        """Return the values of an enumeration, or unit and range; empty where there is neither."""
        return f"one of {', '.join(self.values)}" if self.values else self.text.range()


def help_page(tree: Any, presets: Callable[[str], list[str]]) -> str:
    """Return the help of a script from its composed settings, Hydra's own among them; `presets` lists a group's.

    Hydra's own page copies all settings for every group that it lists, which takes seconds, and lists our dataclasses.
    """
    from omegaconf import OmegaConf, open_dict

    names = [name for name in tree.hydra.runtime.choices if "/" not in name]
    listed = "".join(f"{name}: {', '.join(presets(name))}\n" for name in sorted(names))
    template = Template(tree.hydra.help.template)
    with open_dict(tree):
        del tree.hydra
    config_class: Any = OmegaConf.get_type(tree)
    page = template.substitute(APP_CONFIG_GROUPS=listed, CONFIG="".join(_help_lines(tree, config_class, "")))
    return as_typed(page)


def _help_lines(tree: Any, config_class: type, prefix: str) -> Iterator[str]:
    """Yield a line for each setting of a node, those of the groups below it under a heading of their own."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(tree, resolve=False, enum_to_str=True)
    assert isinstance(plain, dict)
    inner: dict[str, Any] = {each.name: OmegaConf.get_type(tree, each.name) for each in fields(config_class)}
    nested = {name: kind for name, kind in inner.items() if is_dataclass(kind)}
    for each in fields(config_class):
        if each.name not in nested and each.name in type_hints(config_class):
            row = _row(config_class, each, prefix, plain[each.name])
            start = f"  {row.key}={row.value}"
            notes = f" ({row.notes()})" if row.notes() else ""
            yield f"{start:<{_COLUMN}} {row.text.about}{notes}\n"
    for name, kind in nested.items():
        yield f"\n{prefix}{name}: {_first_line(kind)}\n"
        yield from _help_lines(tree[name], typing.cast(type, kind), f"{prefix}{name}.")


def settings_page() -> str:
    """Return docs/reference/settings.md: every setting of a run, of all kinds, with default, help and range."""
    parts = [
        "# Settings\n\nEvery setting of a training run, for `key=value` on the command line and for YAML files. "
        "`make settings` writes this page from the code.\n"
    ]
    parts.append(_table("The run", RunConfig, ""))
    for name, hint in type_hints(RunConfig).items():
        for base in filter(is_dataclass, alternatives(hint)):
            parts.append(_table(name, typing.cast(type, base), f"{name}."))
            for kind, kind_class in choices(name).items() if name in groups() else ():
                parts.append(_table(f"{name}={kind}", kind_class, f"{name}.", typing.cast(type, base)))
    parts.append(_table("stages.<name>", StageEnd, "stages.<name>."))
    for section in (CALLBACKS, LOGGERS):
        for kind, kind_class in choices(section.group).items():
            parts.append(_table(f"{section.key}.<name>.kind={kind}", kind_class, f"{section.key}.<name>."))
    return "\n".join(parts)


def _table(title: str, config_class: type, prefix: str, base: type | None = None) -> str:
    """Return the table of a class; with a `base`, of the settings that differ from those of that class."""
    shared = list(_rows(base, prefix)) if base else []
    rows = [row for row in _rows(config_class, prefix) if row not in shared]
    lines = [f"## {_escaped(title)}\n", f"{_escaped(_first_line(config_class))}\n"]
    if rows:
        lines += ["| setting | default | what it is | range |", "|---|---|---|---|"]
    for row in rows:
        cells = [f"`{row.key}`", f"`{row.value}`", _escaped(row.text.about), row.notes()]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Return text for Markdown, in which <name> would be a tag of HTML."""
    return text.replace("<", "&lt;")


def _rows(config_class: type, prefix: str) -> Iterator[_Row]:
    hints = type_hints(config_class)
    for each in fields(config_class):
        nested = [inner for inner in alternatives(hints.get(each.name)) if is_dataclass(inner)]
        if prefix and nested:
            yield from _rows(typing.cast(type, nested[0]), f"{prefix}{each.name}.")
        elif not nested and each.name in hints:
            default = each.default_factory() if each.default_factory is not MISSING else each.default
            yield _row(config_class, each, prefix, default)


def _row(config_class: type, each: Field[Any], prefix: str, value: Any) -> _Row:
    enums = [kind for kind in alternatives(type_hints(config_class).get(each.name)) if _is_enum(kind)]
    names = [name for kind in enums for name in kind.__members__ if kind[name].name == name]
    return _Row(f"{prefix}{each.name}", _shown(value), description(config_class, each.name), names)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _shown(value: Any) -> str:
    """Return a value as one types it on the command line."""
    return f'"{value}"' if isinstance(value, str) and (not value or value != value.strip()) else shown(value)


def _first_line(config_class: Any) -> str:
    return str(config_class.__doc__ or "").strip().partition("\n")[0]


if __name__ == "__main__":
    print(printable(settings_page()), end="")
