"""Continue a prompt, or fill its masks, with a trained model: `python src/generate.py --help`."""

from pretrain.command_line import main
from pretrain.script_config import GenerateConfig


def generate(config: GenerateConfig, overrides: list[str]) -> None:
    """Print the continuation as it comes, or the likeliest words for each mask."""
    from pretrain.checkpoint import latest_run
    from pretrain.inference.printing import printable
    from pretrain.language_model import LanguageModel

    path = latest_run(config.paths.logs_dir) if config.checkpoint == "auto" else config.checkpoint
    language_model = LanguageModel.load(path)
    if "[MASK]" in config.prompt or not language_model.causal:
        for number, answers in enumerate(language_model.predict_mask(config.prompt, config.top_k or 5), start=1):
            print(f"mask {number}")
            for answer in answers:
                print(f"  {answer.probability:6.1%}  {printable(answer.token.strip()):<16}  {printable(answer.text)}")
        return
    print(printable(config.prompt), end="", flush=True)
    for piece in language_model.stream(
        config.prompt,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        repetition_penalty=config.repetition_penalty,
        seed=config.seed,
    ):
        print(printable(piece), end="", flush=True)
    print()


if __name__ == "__main__":
    main("generate", GenerateConfig, generate, free_text="prompt")
