"""Hints for a mistyped setting, preset or value: other projects' names for ours, then the nearest spelling."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from pretrain.config.declared import every_setting, kinds_with
from pretrain.config.registry import groups
from pretrain.errors import nearest

# what others call a setting; of several, those that the script has
_SETTINGS: dict[str, str] = {
    "optimizer.learning_rate": "lr max_lr peak_lr base_lr",
    "optimizer.weight_decay": "wd decay",
    "optimizer.beta1": "adam_beta1 betas",
    "optimizer.beta2": "adam_beta2",
    "optimizer.eps": "adam_eps adam_epsilon",
    "schedule.warmup_steps": "warmup warmup_iters num_warmup_steps lr_warmup_steps",
    "schedule.warmup_fraction": "warmup_ratio warmup_percent warmup_pct warmup_share pct_start warmup_prop",
    "schedule.min_lr_ratio": "min_lr final_lr end_lr",
    "schedule.decay_fraction": "decay_ratio cooldown",
    "schedule": "scheduler lr_scheduler lr_schedule lr_scheduler_type",
    "model.context_length": (
        "seq_len seq_length sequence_length max_seq_len max_seq_length max_length block_size n_ctx n_positions "
        "max_position_embeddings context context_size context_window"
    ),
    "model.n_layers": "n_layer num_layers num_hidden_layers layers depth n_blocks",
    "model.d_model": "hidden_size n_embd embed_dim embedding_dim hidden_dim dim width model_dim",
    "model.n_heads": "n_head num_heads num_attention_heads heads attention_heads",
    "model.n_kv_heads": "num_key_value_heads n_kv_head num_kv_heads kv_heads n_query_groups",
    "model.d_ff": "intermediate_size ffn_dim d_ffn mlp_dim ffn_hidden_size n_inner",
    "model.dropout": "resid_pdrop embd_pdrop hidden_dropout hidden_dropout_prob residual_dropout",
    "model.attention_dropout": "attn_pdrop attn_dropout attention_probs_dropout_prob",
    "model.head_dim": "d_head",
    "model.feed_forward": "activation hidden_act activation_function mlp act",
    "model.norm_eps": "rms_norm_eps layer_norm_eps layer_norm_epsilon layernorm_eps",
    "model.position": "position_embedding positional_encoding position_encoding pos_emb",
    "model.rope_base": "rope_theta theta rotary_base",
    "model.rope_base_local": "rope_local_base_freq local_rope_theta",
    "model.attention_scale": "query_pre_attn_scalar attention_multiplier softmax_scale",
    "model.logit_softcap": "final_logit_softcapping logits_softcap softcap",
    "model.attention_softcap": "attn_logit_softcapping attn_softcap",
    "model.global_attention_every": "sliding_window_pattern global_attn_every_n_layers",
    "model.sliding_window": "window_size",
    "model.tie_embeddings": "tie_weights tie_word_embeddings weight_tying",
    "model.bias": "use_bias add_bias",
    "model.init_std": "initializer_range init_scale",
    "objective.mask_probability": "mlm_probability mask_prob masking_ratio mask_ratio",
    "objective.z_loss": "z_loss_weight z_loss_coef",
    "tokenizer.vocab_size": "n_vocab vocabulary_size",
    "tokenizer.path": "tokenizer_path tokenizer_name tokenizer_file",
    "data.path": "dataset data_path dataset_path dataset_name train_file train_data data_dir corpus files",
    "data.validation_path": "val_path valid_path eval_path validation_file val_file eval_file val_data",
    "data.validation_fraction": "val_fraction val_split validation_split val_ratio validation_ratio test_size",
    "data.text_column": "text_field text_key column content_field",
    "data.prefetch": "workers num_workers dataloader_num_workers n_workers prefetch_factor",
    "data.mode": "streaming stream",
    "batch_size": "bs global_batch_size train_batch_size effective_batch_size",
    "micro_batch_size": (
        "per_device_train_batch_size per_device_batch_size gradient_accumulation_steps grad_accum accumulation_steps "
        "accumulate_grad_batches device_batch_size mbs"
    ),
    "trainer.max_steps": (
        "steps max_iters num_steps train_steps iterations num_iterations total_steps max_train_steps"
    ),
    "trainer.max_epochs": "epochs num_epochs num_train_epochs n_epochs total_epochs train_epochs",
    "trainer.max_tokens": "train_tokens total_tokens num_tokens token_budget",
    "trainer.max_time": "time_limit max_minutes max_hours minutes",
    "trainer.precision": "dtype amp mixed_precision fp16 bf16 half",
    "trainer.initial_loss_scale": "loss_scale init_scale initial_scale initial_scale_power",
    "trainer.loss_scale_growth_interval": "growth_interval loss_scale_window scale_window",
    "trainer.devices": "gpus num_gpus n_gpus ngpu num_devices nproc_per_node",
    "trainer.accelerator": "accel",
    "trainer.num_nodes": "nodes nnodes n_nodes",
    "trainer.gradient_clip_val": "grad_clip gradient_clip gradient_clipping max_grad_norm clip_grad clip_norm clip",
    "trainer.val_check_interval": "eval_interval eval_steps eval_every val_interval val_every validation_interval",
    "trainer.log_every_n_steps": "log_interval logging_steps log_every log_steps",
    "trainer.enable_progress_bar": "progress progress_bar",
    "parallel.compile": "torch_compile compile_model",
    "parallel.tensor_parallel": "tp tp_size tensor_parallel_size tensor_model_parallel_size",
    "parallel.context_parallel": "cp cp_size context_parallel_size ring_attention",
    "parallel.activation_checkpointing": "gradient_checkpointing activation_recomputation recompute",
    "checkpoint.every_n_steps": "save_steps save_every save_interval checkpoint_interval checkpoint_every",
    "checkpoint.keep": "save_total_limit keep_last max_checkpoints save_top_k load_best_model_at_end",
    "loggers": "report_to log_with tracker trackers",
    "paths.run_dir": "output_dir out_dir save_dir run_folder outdir checkpoint_dir",
    "paths.logs_dir": "log_dir logdir logging_dir root_dir default_root_dir",
    "resume": "resume_from resume_from_checkpoint ckpt_path checkpoint_path from_checkpoint restore",
    "init_from": "pretrained pretrained_model pretrained_model_name_or_path model_name model_name_or_path",
    "name": "run_name experiment_name exp_name run_id wandb_run_name",
    "seed": "random_seed rng_seed manual_seed",
    "max_new_tokens": "max_tokens max_length num_tokens length n_tokens new_tokens",
    "checkpoint": "model ckpt model_path run folder",
    "prompt": "text input start",
    "temperature": "temp",
    "path": "data file examples input dataset data_path",
    "sources": "path input data file files folder source text_files data_path",
    "task": "tasks benchmark",
    "output": "out out_dir output_dir save_dir dir",
    "device": "accelerator gpu",
}  # fmt: skip


_PRESETS: dict[str, dict[str, str]] = {
    "model": {
        "gpt_small": "gpt2 gpt gpt2_small gpt2_124m", "gpt_medium": "gpt2_medium", "gpt_large": "gpt2_large",
        "gpt_xl": "gpt2_xl", "bert_base": "bert bert_base_uncased bert_base_cased bert_base_multilingual_cased",
        "bert_large": "bert_large_uncased bert_large_cased", "modernbert_base": "modernbert",
        "llama_1b": "llama llama2 llama3 llama_3_2_1b tinyllama", "llama_7b": "llama_2_7b llama2_7b llama_8b",
        "gpt_nano": "nanogpt nano tiny", "imported": "pretrained auto",
    },
    "data": {
        "text_files": "text txt file files local folder jsonl json", "hugging_face": "hf huggingface datasets hub",
        "wikitext": "wiki wikitext_2 wikitext_103 wikitext2 wikitext103",
        "pairs": "instruct sft chat instructions", "labeled": "labelled classification labels", "mixture": "mix blend",
    },
    "tokenizer": {"bytes": "byte char characters byt5", "pretrained": "hf huggingface hugging_face sentencepiece"},
    "optimizer": {"adamw": "adam adam_w sgd adamw_torch adafactor", "stable_adamw": "stableadamw"},
    "schedule": {
        "cosine": "cosine_with_warmup cosine_annealing", "linear": "linear_with_warmup", "wsd": "trapezoidal warmup",
        "constant": "none constant_with_warmup",
    },
    "objective": {"causal": "clm lm autoregressive gpt next_token", "masked": "mlm bert masked_lm",
                  "classify": "classification cls", "regress": "regression mse"},
    "trainer": {"gpu": "cuda single", "fsdp": "fsdp2 zero sharded deepspeed", "ddp": "dp distributed multi_gpu"},
    "logger": {"tensorboard": "tb", "wandb": "weights_and_biases w_b", "comet": "comet_ml", "none": "null false off"},
    "callbacks": {"lr_monitor": "learning_rate_monitor", "early_stopping": "earlystopping", "none": "null false off"},
}  # fmt: skip


_VALUES: dict[str, str] = {
    "bf16": "bf16-mixed bf16-true bfloat16 mixed",
    "fp16": "16-mixed 16-true 16 float16 half amp",
    "fp32": "32 32-true float32 full float",
    "rms": "rmsnorm rms_norm", "layer": "layernorm layer_norm ln", "swiglu": "silu swish", "gelu": "gelu_new gelu_tanh",
    "rope": "rotary rope_embeddings", "learned": "absolute learnt", "fsdp": "fsdp2 zero zero3", "ddp": "dp",
    "minimal_pairs": "blimp", "cloze": "lambada lambada_openai", "bias": "crows_pairs", "sts": "stsb sts-b",
    "multiple_choice": "hellaswag arc arc_easy arc_challenge piqa", "retrieval": "beir mteb", "needle": "niah ruler",
    "documents": "perplexity loss",
    "best_fit": "pack packed bfd", "concat": "concatenate concat_chunk", "stream": "streaming", "int8": "8bit 8-bit",
}  # fmt: skip


_SOURCE = "sources.mine={{kind: text_files, path: {}, license: unknown}}"  # of a corpus to curate


# the setting that a word alone most likely stands for
_MAIN_SETTING = {
    "train": "data.path", "plan": "data.path", "doctor": "data.path", "prepare": "data.path", "generate": "prompt",
    "eval": "path", "report": "path", "verify": "path", "explain": "path", "forget": "domain",
    "inspect": "run", "export": "checkpoint",
}  # fmt: skip


_NOTES = {
    "warmup_p": "It is a part of the run, such as 0.02",
    "accum": "How many micro-batches make a step follows from it and batch_size",
    "save_top_k": "It keeps the newest ones; 0 keeps all, to choose the best of",
    "load_best": "It keeps the newest ones; 0 keeps all, to choose the best of",
    "min_lr": "It is a share of optimizer.learning_rate",
}


_MOST = 4  # settings that are named at once


def of_setting(key: str, known: list[str], config_class: type, whole: str) -> str:
    """Return one line about a key that is no setting: what it may stand for, of all that the script has.

    `known` are the settings beside it; of `whole`, which was typed, it is the part that is not known. First comes the
    kind that has it, then the same last part elsewhere, then what others call it, then what is spelt much like it.
    """
    group, _, rest = whole.partition(".")
    kinds = kinds_with(group, rest) if group in groups() and rest else []
    if kinds:
        choices = [f"{group}={kind}" for kind in kinds]
        best = "data=text_files" if "data=text_files" in choices else choices[0]
        return f"{whole} is a setting of {_listed(choices, 'and')} only. Choose that as well: {best}"
    of_kinds = [name for name in every_setting(config_class) if name.rpartition(".")[0] == key.rpartition(".")[0] != ""]
    close = difflib.get_close_matches(key, dict.fromkeys([*known, *of_kinds]), n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]}?" if close and close[0] not in known else nearest(key, known)
    return f"{key} is not a setting. {_meant(whole, hint, config_class)}"


def of_word(config_name: str, words: list[str], word: str) -> str:
    """Return one line about a word of a command line that is no setting with a value: what may be meant."""
    at = words.index(word)
    if (following := "".join(words[at + 1 : at + 3])).startswith("=") or word.startswith("="):
        instead = f"{word}{following}" if not word.startswith("=") and len(following) > 1 else "key=value"
        return f"{word!r} is not a setting with a value. Leave out the blanks around the equals sign: {instead}"
    if word in ("help", "version"):
        return f"{word!r} is not a setting with a value. Try {'--help' if word == 'help' else 'pretrain --version'}"
    if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", word) and not Path(word).exists():
        following = words[at + 1] if at + 1 < len(words) and "=" not in words[at + 1] else "<value>"
        return f"{word!r} is not a setting with a value. Write {word}={following}"
    if config_name == "curate":
        value = word if Path(word).exists() else "<folder>"
        return (
            f"{word!r} is not a setting with a value. Name a source and its license: "
            f"'{_SOURCE.format(value)}' output=<folder>"
        )
    setting = _MAIN_SETTING.get(config_name)
    if setting is not None and (" " in word or "/" in word or Path(word).exists()):
        value = f'"{word}"' if " " in word else word
        return f"{word!r} is not a setting with a value. Write key=value; did you mean {setting}={value}?"
    # a lone word may be a name of this script's main setting; of a training it is more often half of a setting
    example = "trainer.max_steps=100" if setting in (None, "data.path") else f"{setting}={word}"
    return f"{word!r} is not a setting with a value. Write key=value, such as {example}."


def of_mapping(key: str, value: str) -> str:
    """Return one line about a single value that was given to settings with entries by name."""
    entry = _SOURCE.format(value) if key == "sources" and "{" not in value else f"{key}.<name>=..."
    return f"{key}={value} does not fit: {key} has entries by name. Try '{entry}'."


def of_preset(group: str, name: str, known: list[str]) -> str:
    """Return a hint for a name that is no preset of its group."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower().rpartition("/")[2])
    meant = next((ours for ours, words in _PRESETS.get(group, {}).items() if plain in words.split()), None)
    return f"Did you mean {meant}?" if meant in known else nearest(name, known)


def of_value(value: str, known: list[str]) -> str | None:
    """Return the value that was meant by one that is none of those known; None where nothing is near."""
    plain = value.lower()
    for ours, words in _VALUES.items():
        if plain in words.split() and ours in known:
            return ours
    close = difflib.get_close_matches(plain, [name.lower() for name in known], n=1, cutoff=0.6)
    return next((name for name in known if close and name.lower() == close[0]), None)


def of_reference(error: BaseException) -> str:
    """Return one line about a setting that refers by ${...} to what there is not, or to itself."""
    key = getattr(error, "full_key", None)
    return f"the settings cannot be resolved: {f'{key}: ' if key else ''}{str(error).strip().partition(chr(10))[0]}"


def _meant(key: str, spelt: str, config_class: type) -> str:
    last, every = key.rpartition(".")[2].lower(), every_setting(config_class)
    parts = {".".join(name.split(".")[:depth]) for name in every for depth in range(1, name.count(".") + 2)}
    same = [name for name in every if name.rpartition(".")[2] == last and name != key]
    others = [ours for ours, words in _SETTINGS.items() if last in words.split() and ours in parts and ours != key]
    found = same or sorted(others, key=lambda ours: ours.count("."))
    if not found:
        far = {name.rpartition(".")[2]: name for name in reversed(every)}
        near = [] if spelt.startswith("Did") else difflib.get_close_matches(last, far, n=1, cutoff=0.75)
        return f"Did you mean {far[near[0]]}?" if near else spelt
    note = next((f" {note}." for word, note in _NOTES.items() if word in last), "")
    if found == ["sources"]:
        note = f" Type a name, a kind and a license with it: '{_SOURCE.format('my_texts/')}'"
    return f"Did you mean {_listed(found[:_MOST], 'or')}?{note}"


def _listed(names: list[str], last: str) -> str:
    *others, final = names
    return f"{', '.join(others)} {last} {final}" if others else final
