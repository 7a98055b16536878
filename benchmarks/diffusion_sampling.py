"""Compare the speed of a diffusion model's sampling with causal generation: `python benchmarks/diffusion_sampling.py`.

The models have one shape and random weights. Each generates the same number of tokens after a short prompt: the
diffusion model in a few steps that read the whole text, the causal one a token at a time, with and without its cache.
"""

import argparse
import time
from collections.abc import Callable

import torch

from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.inference.diffusion import Denoising, generate_by_denoising
from pretrain.inference.generate import Decoding, generate_tokens
from pretrain.inference.sampling import Sampling
from pretrain.models.transformer import Transformer

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
    """Print the seconds of each way and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gpt_small", help="preset of the shape")
    parser.add_argument("--vocab_size", type=int, default=50257)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs="+", default=[32, 128])
    options = parser.parse_args()
    register_schemas("train", RunConfig)
    suppressed = torch.zeros(options.vocab_size, dtype=torch.bool)
    suppressed[MASK] = True
    sampling = Sampling(1.0, seed=0)
    causal = random_model(options.model, options.vocab_size, causal=True)
    taken: dict[str, float] = {}
    for name, use_cache in (("causal, cached", True), ("causal, without cache", False)):
        decoding = Decoding(options.tokens, sampling, -1, suppressed, use_cache)
        taken[name] = seconds(lambda decoding=decoding: list(generate_tokens(causal, [PROMPT], decoding)))
    model = random_model(options.model, options.vocab_size, causal=False)
    for steps in options.steps:
        denoising = Denoising(MASK, suppressed, sampling, steps=steps)
        name = f"diffusion, {steps} steps"
        taken[name] = seconds(
            lambda denoising=denoising: list(generate_by_denoising(model, [PROMPT], options.tokens, denoising))
        )
    print(f"{options.model}, {options.tokens} tokens after {len(PROMPT)}, {torch.get_num_threads()} threads")
    print(f"{'':<24} {'seconds':>8} {'x cached':>9} {'x without':>9}")
    for name, value in taken.items():
        cached, without = taken["causal, cached"], taken["causal, without cache"]
        print(f"{name:<24} {value:8.2f} {value / cached:9.2f} {value / without:9.2f}")


if __name__ == "__main__":
    main()
