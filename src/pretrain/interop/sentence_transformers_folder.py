"""The files beside a Hugging Face folder by which sentence-transformers embeds texts as we do."""

import json
from pathlib import Path

from pretrain.errors import ConfigError
from pretrain.interop.folder import POOLING_MODES
from pretrain.interop.load import ModelFolder
from pretrain.interop.write import AddedIds
from pretrain.models.config import transformer_of
from pretrain.objectives.fine_tuning_config import Pooling

_OTHER_MODES = ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")


def write_modules(folder: Path, source: ModelFolder, added_ids: AddedIds) -> None:
    """Write the modules of a model whose Hugging Face files are in `folder`: pooling, then vectors of length 1.

    Raises ConfigError for a model whose tokenizer does not put its BOS and EOS around a text, as embeddings have them.
    """
    tokenizer, objective = source.tokenizer, source.objective
    if tuple(map(list, added_ids)) != ([tokenizer.bos_id], [tokenizer.eos_id]):
        raise ConfigError(
            "sentence_transformers=true needs a tokenizer that puts one token before and one after a text, and this "
            "one does not. Fine-tune the model first (experiment=embed), or try sentence_transformers=false."
        )
    auto = Pooling.last if objective.causal else Pooling.mean
    if source.stated is not None and objective.embedding_pooling is None:
        source.stated.check()
    pooling = objective.embedding_pooling or (source.stated and source.stated.pooling) or auto
    shape = transformer_of(source.shape, "is exported to sentence-transformers")
    modes = {f"pooling_mode_{name}": pooling is known for known, name in POOLING_MODES.items()}
    settings: dict[str, object] = {"word_embedding_dimension": shape.d_model, **modes}
    settings |= {f"pooling_mode_{name}": False for name in _OTHER_MODES}
    for name in ("1_Pooling", "2_Normalize"):
        (folder / name).mkdir()
    _write(folder / "1_Pooling" / "config.json", settings)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": shape.context_length, "do_lower_case": False})
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    _write(folder / "modules.json", modules)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
