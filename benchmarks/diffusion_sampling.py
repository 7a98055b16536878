"""Compare the speed of a diffusion model's sampling with causal generation: `python benchmarks/diffusion_sampling.py`.

The models have one shape and random weights. Each generates the same number of tokens after a short prompt: the
diffusion model in a few steps that read the whole text, the causal one a token at a time, with and without its cache.
With one thread the seconds are of CPU time.
"""

import argparse
import time
from collections.abc import Callable

import torch
from comparison import Result, typed

from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.inference.diffusion import Denoising, generate_by_denoising
from pretrain.inference.generate import Decoding, generate_tokens
from pretrain.inference.sampling import Sampling
from pretrain.models.transformer import Transformer

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/inference/diffusion.py",
    "src/pretrain/inference/generate.py",
    "src/pretrain/inference/sampling.py",
    "configs/model/gpt_small.yaml",
)

MASK = 0
PROMPT = list(range(10, 26))
# with one thread CPU time, which other processes hardly change
CLOCK = time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def random_model(preset: str, vocab_size: int, causal: bool) -> Transformer:
    """Return a model of a preset's shape with random weights."""
    config: RunConfig = compose("train", [f"model={preset}"])
    torch.manual_seed(0)
    model: Transformer = config.model.build(vocab_size, causal)  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    return model.eval()


def seconds(generate: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    started = CLOCK()
    generate()
    return CLOCK() - started


def main() -> None:
    """Print and save the seconds of each way and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gpt_small", help="preset of the shape")
    parser.add_argument("--vocab_size", type=int, default=50257)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs="+", default=[32])
    options = parser.parse_args()
    register_schemas("train", RunConfig)
    suppressed = torch.zeros(options.vocab_size, dtype=torch.bool)
    suppressed[MASK] = True
    sampling = Sampling(1.0, seed=0)
    causal = random_model(options.model, options.vocab_size, causal=True)
    causal_s: dict[str, list[float]] = {}
    for name, use_cache in (("causal without cache", False), ("causal, cached", True)):
        decoding = Decoding(options.tokens, sampling, frozenset(), suppressed, use_cache)
        causal_s[name] = [seconds(lambda decoding=decoding: list(generate_tokens(causal, [PROMPT], decoding)))]
    model = random_model(options.model, options.vocab_size, causal=False)
    result = Result("diffusion_sampling", typed(), {"model": options.model, "prompt": len(PROMPT)})
    for steps in options.steps:
        denoising = Denoising(MASK, suppressed, sampling, steps=steps)
        taken = seconds(
            lambda denoising=denoising: list(generate_by_denoising(model, [PROMPT], options.tokens, denoising))
        )
        what = f"{options.model}, {options.tokens} tokens in {steps} steps"
        targets = {"causal without cache": 1.0} if steps <= options.tokens // 4 else None
        result.add(what, "s", {"ours": [taken]} | causal_s, more_is_better=False, targets=targets)
    result.finish(keep=options.model == "gpt_small")


if __name__ == "__main__":
    main()
