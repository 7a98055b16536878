"""`pretrain generate`: complete, fill masks of, or classify a prompt with a trained model."""

from pretrain.config import cli
from pretrain.inference.config import GenerateConfig


def generate(config: GenerateConfig, overrides: list[str]) -> None:
    """Print the completion, the response, the predictions for each mask, or the label probabilities."""
    from pretrain.data.escapes import read_escapes
    from pretrain.errors import printable
    from pretrain.inference.config import GenerationOptions
    from pretrain.interop.load import chosen_model
    from pretrain.language_model import LanguageModel

    path = chosen_model(config.checkpoint, config.paths.logs_dir)
    language_model = LanguageModel.load(path, config.device, config.dtype)
    if language_model.labels:
        for label, probability in language_model.classify(config.prompt).items():
            print(printable(f"  {probability:6.1%}  {label}", one_line=True))
        return
    if "[MASK]" in config.prompt or not language_model.causal:
        for number, predictions in enumerate(language_model.predict_mask(config.prompt, config.top_k or 5), start=1):
            print(printable(f"mask {number}"))
            for prediction in predictions:
                token = printable(prediction.token.strip(), one_line=True)
                print(printable(f"  {prediction.probability:6.1%}  {token:<16}  {prediction.text}"))
        return
    options: GenerationOptions = {
        "max_new_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "min_p": config.min_p,
        "repetition_penalty": config.repetition_penalty,
        "stop": [read_escapes(text) for text in config.stop],
        "seed": config.seed,
    }
    if language_model.prompt_template is not None:
        print(printable(language_model.respond(config.prompt, **options)))
        return
    if config.log_probabilities:
        (completion,) = language_model.complete([config.prompt], **options)
        print(printable(config.prompt + completion.text))
        for token_id, value in zip(completion.tokens, completion.log_probabilities, strict=True):
            print(printable(f"  {value:8.4f}  {language_model.tokenizer.token(token_id)!r}"))
        return
    pieces = language_model.stream(config.prompt, **options)  # a refused prompt raises before it is printed
    print(printable(config.prompt), end="", flush=True)
    for piece in pieces:
        print(printable(piece), end="", flush=True)
    print()


def main(subcommand: str = "") -> None:
    """Do what the command line says; `subcommand` is its first word where that chose this task."""
    cli.main("generate", GenerateConfig, generate, free_text="prompt", subcommand=subcommand)
