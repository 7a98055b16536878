"""Pre-train a causal, masked or diffusion Transformer: `python src/train.py --help`, as `pretrain train --help`.

It runs under @hydra.main, so that Hydra's flags, launchers, sweepers and shell completion work.
"""

from pretrain.commands.tasks import main

if __name__ == "__main__":
    main("train")
