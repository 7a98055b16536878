"""The command `pretrain`, also `python -m pretrain`: its first word names what to do."""

from __future__ import annotations

import sys

from pretrain import __version__
from pretrain.errors import ConfigError, message_of, nearest, outlive_readers, show

COMMANDS = {
    "train": "pre-train a causal, masked or diffusion Transformer",
    "curate": "make a corpus of raw text, with a manifest of what was removed and why",
    "verify": "check every hash and count of a curated corpus",
    "explain": "say why documents of a curated corpus were removed",
    "forget": "take documents out of a curated corpus, and say which runs read them",
    "prepare": "write the tokenizer and the token stores of a corpus",
    "inspect": "show the rows of a step of a run",
    "generate": "complete, fill masks of, or classify a prompt with a trained model",
    "eval": "score a trained model on documents or a task",
    "average": "average the weights of checkpoints",
    "export": "write a trained model as a Hugging Face folder",
    "compare": "compare runs, or groups of them with different seeds",
    "scale": "train a ladder of sizes and lengths, and fit a scaling law to it",
    "report": "write report.html of a run, of a folder of runs, or of a corpus",
    "plan": "say what a run takes, without training",
    "doctor": "prove on this machine, at small size, what a run relies on",
    "init": "write a small project of your own that runs",
}


def main() -> None:
    """Run the command that the first word names; exits with 2 where that is none."""
    outlive_readers()
    words = sys.argv[1:]
    if words[:2] in (
        ["prepare", "inspect"],
        ["curate", "verify"],
        ["curate", "forget"],
    ):  # as after the script of a clone
        del sys.argv[1], words[0]
    name = words[0] if words else "--help"
    if name in ("-h", "--help", "help"):
        show(_overview())
    elif name == "--version":
        show(f"pretrain {__version__}")
    elif name == "init":
        from pretrain.commands import init

        init.main()
    elif name in COMMANDS:
        from pretrain.commands import tasks  # here: the overview needs none of it

        tasks.main(name, typed=True)
    else:
        error = ConfigError(f"{name} is no command of pretrain. {nearest(name, COMMANDS)}")
        print(message_of(error), file=sys.stderr)
        sys.exit(error.exit_code)


def _overview() -> str:
    lines = [f"  {name:<10} {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        ["pretrain <command> [setting=value] ...", "", *lines, "", "Settings of a command: pretrain <command> --help"]
    )


if __name__ == "__main__":
    main()
