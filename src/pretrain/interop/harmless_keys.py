"""Keys of config.json that leave the logits alone: with them transformers computes what it computes without them.

A family reads a key, demands one value of it, or finds it here; any other key is refused by name. Names of the keys:
https://github.com/huggingface/transformers, configuration_utils.py, generation/configuration_utils.py and
models/<model_type>/configuration_<model_type>.py, with those that earlier versions wrote.
"""

_ALL_FAMILIES = """
    architectures model_type name_or_path _name_or_path _commit_hash transformers_version transformers.js_config
    is_llama_config unsloth_version unsloth_fixed tokenizer_class language license

    return_dict use_return_dict output_attentions output_hidden_states output_past tie_last_hidden_states use_cache
    torchscript dtype torch_dtype use_bfloat16 attn_implementation _attn_implementation _attn_implementation_autoset
    _attn_implementation_internal _flash_attn_2_enabled gradient_checkpointing chunk_size_feed_forward pretraining_tp

    bos_token_id eos_token_id pad_token_id cls_token_id sep_token_id mask_token_id unk_token_id decoder_start_token_id
    bos_token eos_token pad_token mask_token prefix

    id2label label2id num_labels _num_labels problem_type finetuning_task task_specific_params classifier_dropout
    classifier_pooling clf_pooling

    initializer_range initializer_factor initializer_cutoff_factor tf_legacy_loss max_sequence_length

    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams
    num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens
    target_lookbehind temperature top_k top_p typical_p
"""
_GPT2 = """
    is_decoder n_ctx reorder_and_upcast_attn summary_type summary_use_proj summary_activation summary_first_dropout
    summary_last_dropout summary_proj_to_labels
"""
_BERT = """
    directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
"""
_MODERN_BERT = """
    deterministic_flash_attn layer_norm_eps position_embedding_type reference_compile repad_logits_with_grad
    sparse_prediction sparse_pred_ignore_index
"""

EVERYWHERE = frozenset(_ALL_FAMILIES.split())
OF_DECODERS = frozenset({"is_decoder"})  # their attention is causal without it
OF_GPT2 = frozenset(_GPT2.split())
OF_BERT = frozenset(_BERT.split())
OF_MODERN_BERT = frozenset(_MODERN_BERT.split())
