"""What `--help` shows: how a script is called, the presets to choose from, and every setting with its value."""

from collections.abc import Callable
from string import Template
from typing import Any


def help_page(tree: Any, presets: Callable[[str], list[str]]) -> str:
    """Return the page of a script from its composed settings, Hydra's own among them; `presets` lists a group's.

    Hydra's own page copies all settings for every group that it lists, which takes seconds, and lists our dataclasses.
    """
    from omegaconf import OmegaConf, open_dict

    groups = [name for name in tree.hydra.runtime.choices if "/" not in name]
    listed = "".join(f"{name}: {', '.join(presets(name))}\n" for name in sorted(groups))
    template = Template(tree.hydra.help.template)
    with open_dict(tree):
        del tree.hydra
    return template.substitute(APP_CONFIG_GROUPS=listed, CONFIG=OmegaConf.to_yaml(tree))
