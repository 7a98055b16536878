"""Pre-train a causal or masked Transformer: `python src/train.py --help`, the same as `pretrain train --help`.

It runs under @hydra.main, so that Hydra's flags, launchers, sweepers and shell completion work.
"""

from pretrain.commands.tasks import main

if __name__ == "__main__":
    main("train")
