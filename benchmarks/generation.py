"""How fast a model writes with its cache, without, and in transformers: `python benchmarks/generation.py`.

Weights are random, the tokens greedy, prompts of 32 tokens continued by 64 more; the figure is that of the fastest of a
few tries. Ours and transformers hold the same weights, and the last column says whether all wrote the same tokens. With
the cache, keys and values of prompt and continuation have one allocation; transformers' default cache grows by a copy
at every step.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine

from pretrain.command_line import compose, register_schemas
from pretrain.config import RunConfig
from pretrain.inference.generate import continue_prompts
from pretrain.inference.sampling import Sampling
from pretrain.interop.comparison import transformers_is_there
from pretrain.interop.families import FAMILIES
from pretrain.interop.family import choose_family
from pretrain.models.transformer import Transformer

Write = Callable[[list[list[int]], int], list[list[int]]]


def random_model(preset: str, vocab_size: int) -> Transformer:
    """Return a model of a preset's shape with random weights."""
    register_schemas("train", RunConfig)
    config: RunConfig = compose("train", [f"model={preset}"])
    torch.manual_seed(0)
    model: Transformer = config.model.build(vocab_size, True)  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    return model.eval()


def ours(model: Transformer, use_cache: bool) -> Write:
    """Return what continues prompts with our code."""

    def write(prompts: list[list[int]], new: int) -> list[list[int]]:
        steps = continue_prompts(
            model,
            prompts,
            max_new_tokens=new,
            sampling=Sampling(temperature=0),
            end_id=-1,
            forbidden=torch.zeros(model.vocab_size, dtype=torch.bool),
            use_cache=use_cache,
        )
        return [[token.token for token in column if token] for column in zip(*steps, strict=True)]

    return write


def theirs(model: Transformer, folder: Path) -> Write:
    """Return what continues prompts with transformers, which reads the same weights."""
    from transformers import AutoModelForCausalLM

    from pretrain.data.tokenizer_training import byte_tokenizer
    from pretrain.interop.writing import write_settings, write_weights

    family = choose_family(model.config, True, FAMILIES)
    write_weights(folder, family, model, lambda name, size: model.get_parameter(name).detach(), 10**10)
    write_settings(folder, family, model, byte_tokenizer())
    other = AutoModelForCausalLM.from_pretrained(folder)
    other.generation_config.eos_token_id = None

    @torch.inference_mode()
    def write(prompts: list[list[int]], new: int) -> list[list[int]]:
        rows = torch.tensor(prompts)
        mask = torch.ones_like(rows)
        found = other.generate(rows, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
        tokens: list[list[int]] = found[:, rows.shape[1] :].tolist()
        return tokens

    return write


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return tokens per second of each way to write, by batch size."""
    model = random_model(given.model, given.vocab_size)
    ways = {"cache": ours(model, True), "no cache": ours(model, False)}
    if transformers_is_there():
        with tempfile.TemporaryDirectory() as folder:
            ways["transformers"] = theirs(model, Path(folder))
    generator = torch.Generator().manual_seed(0)
    rows = []
    for batch in given.batch_sizes:
        prompts = torch.randint(given.vocab_size, (batch, given.prompt), generator=generator).tolist()
        found, row = {}, {"batch": batch}
        for name, write in ways.items():
            write(prompts, 4)
            seconds = []
            for _ in range(1 if name == "no cache" else given.repeats):
                start = time.perf_counter()
                found[name] = write(prompts, given.new)
                seconds.append(time.perf_counter() - start)
            row[name] = batch * given.new / min(seconds)
        rows.append(row | {"same tokens": all(each == found["cache"] for each in found.values())})
    settings = {"model": given.model, "vocabulary": given.vocab_size, "prompt": given.prompt, "new": given.new}
    return {"machine": machine(), "settings": settings, "tokens per second": rows}


def main() -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt_small", help="a preset of a causal model")
    parser.add_argument("--vocab-size", type=int, default=50257)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/generation.json"))
    given = parser.parse_args()
    result = measure(given)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
    print(f"{result['settings']}; {result['machine']}; tokens per second")
    names = list(result["tokens per second"][0])
    print("".join(f"{name:>14}" for name in names))
    for row in result["tokens per second"]:
        print("".join(f"{value:>14.1f}" if isinstance(value, float) else f"{value!s:>14}" for value in row.values()))


if __name__ == "__main__":
    main()
