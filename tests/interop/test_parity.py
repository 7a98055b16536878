"""Import and export of random shapes of all families: transformers' logits, and bitwise equal weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import random_model, shape
from folders import BYTES, lively_weights, write_ours, write_theirs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from torch.testing import assert_close

from pretrain.checkpoint.safetensors_file import TensorFiles
from pretrain.errors import ConfigError
from pretrain.interop.comparison import compare, compare_tokenizers, our_outputs, without_padding
from pretrain.interop.families import FAMILIES
from pretrain.interop.families_table import families_table
from pretrain.interop.family import choose_family
from pretrain.interop.load import open_model
from pretrain.models.config import (
    Activation,
    Head,
    NormPosition,
    Position,
    TransformerConfig,
)
from pretrain.models.rope_config import RopeScaling, RopeScalingConfig

LENGTH = 24
few = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
many_or_few = pytest.mark.parametrize("shapes", [5, pytest.param(200, marks=pytest.mark.long)])
booleans = st.booleans()
attention_biases = st.sampled_from([{}, {"qkv_bias": True, "attention_output_bias": True}])
epsilons = st.sampled_from([1e-5, 1e-6, 1e-12])
scalings = st.sampled_from(
    [
        RopeScalingConfig(),
        RopeScalingConfig(RopeScaling.linear, 4.0),
        RopeScalingConfig(RopeScaling.llama3, 4.0, 1.0, 4.0, 16),
        RopeScalingConfig(RopeScaling.yarn, 4.0, original_context_length=16, beta_fast=2.0),
        RopeScalingConfig(RopeScaling.yarn, 2.0, original_context_length=8, attention_factor=1.25),
    ]
)


@st.composite
def gpt2(draw: Any) -> TransformerConfig:
    return shape(
        "gpt", n_layers=draw(st.integers(1, 3)), n_heads=draw(st.sampled_from([1, 4])), tie_embeddings=draw(booleans),
        d_ff=draw(st.sampled_from([None, 48])), norm_eps=draw(epsilons),
        feed_forward=draw(st.sampled_from([Activation.gelu, Activation.gelu_tanh, Activation.relu2])),
    )  # fmt: skip


@st.composite
def llama(draw: Any) -> TransformerConfig:
    return shape(
        "llama", n_layers=draw(st.integers(1, 3)), n_kv_heads=draw(st.sampled_from([None, 1, 2])), qk_norm=False,
        tie_embeddings=draw(booleans), bias=draw(booleans), head_dim=draw(st.sampled_from([None, 12])),
        norm_eps=draw(epsilons),
        rope_base=draw(st.sampled_from([1e4, 5e5])), rope_scaling=draw(scalings),
        feed_forward=draw(st.sampled_from([Activation.swiglu, Activation.geglu])),
    )  # fmt: skip


@st.composite
def mistral(draw: Any) -> TransformerConfig:
    config = draw(llama())
    return replace(config, bias=False, sliding_window=draw(st.integers(1, 30)), global_attention_every=0)


@st.composite
def qwen2(draw: Any) -> TransformerConfig:
    config = draw(llama())
    window = draw(st.sampled_from([None, 3, 8]))
    return replace(
        config, bias=False, qkv_bias=True, sliding_window=window, global_attention_every=draw(st.integers(0, 3))
    )


@st.composite
def qwen3(draw: Any) -> TransformerConfig:
    config = replace(draw(qwen2()), qk_norm=True, **{"qkv_bias": None} | draw(attention_biases))
    layers = st.sampled_from([[], [0], [0, config.n_layers - 1]]) if config.n_layers > 1 else st.just([])
    return replace(config, global_attention_layers=draw(layers))


@st.composite
def apertus(draw: Any) -> TransformerConfig:
    plain = st.sampled_from([Activation.relu2, Activation.gelu, Activation.gelu_tanh])
    return replace(draw(llama()), bias=False, qk_norm=True, feed_forward=draw(plain))


@st.composite
def eurobert(draw: Any) -> TransformerConfig:
    return replace(draw(llama()), bias=False, head_dim=None)


@st.composite
def bert(draw: Any) -> TransformerConfig:
    config = replace(draw(gpt2()), token_types=draw(st.integers(1, 3)))
    changes = {name: getattr(shape("bert"), name) for name in ("norm_position", "embedding_norm")}
    headless = draw(booleans)
    return replace(config, **changes, head=Head.linear if headless else Head.mlm, tie_embeddings=True)


@st.composite
def modernbert(draw: Any) -> TransformerConfig:
    return shape(
        "modern_bert", d_ff=48, sliding_window=draw(st.sampled_from([None, 2, 7, 8])),
        global_attention_every=draw(st.integers(0, 4)),
        tie_embeddings=draw(booleans), bias=draw(booleans), norm_bias=draw(booleans), rope_scaling=draw(scalings),
        feed_forward=draw(st.sampled_from([Activation.swiglu, Activation.geglu])), norm_eps=draw(epsilons),
    )  # fmt: skip


@st.composite
def roberta(draw: Any) -> TransformerConfig:
    return replace(draw(bert()), feed_forward=Activation.gelu, position_offset=BYTES.pad_id + 1)


@st.composite
def distilbert(draw: Any) -> TransformerConfig:
    return replace(draw(bert()), feed_forward=Activation.gelu, token_types=0, norm_eps=1e-12)


@st.composite
def gpt_neox(draw: Any) -> TransformerConfig:
    return replace(
        draw(gpt2()), position=Position.rope, rope_base=draw(st.sampled_from([1e4, 5e5])), rope_scaling=draw(scalings),
        rope_fraction=draw(st.sampled_from([0.25, 0.5, 1.0])), parallel_residual=draw(booleans),
    )  # fmt: skip


@st.composite
def smollm3(draw: Any) -> TransformerConfig:
    return replace(draw(llama()), nope_every=draw(st.integers(0, 3)))


@st.composite
def olmo2(draw: Any) -> TransformerConfig:
    norms = {"norm_position": NormPosition.output, "qk_norm": True, "qk_norm_across_heads": True}
    return replace(draw(llama()), bias=False, **norms)


@st.composite
def olmo3(draw: Any) -> TransformerConfig:
    return replace(draw(olmo2()), **draw(two_kinds_of_layers()), rope_base_local=draw(st.sampled_from([None, 300.0])))


@st.composite
def two_kinds_of_layers(draw: Any) -> dict[str, Any]:
    every = draw(st.integers(0, 3))
    scaling = draw(scalings)
    window = draw(st.sampled_from([3, 8, 100]))
    return {
        "sliding_window": window, "global_attention_every": every,
        "global_attention_offset": draw(st.integers(0, max(0, every - 1))),
        "rope_scaling": replace(scaling, global_layers_only=draw(booleans)),
    }  # fmt: skip


@st.composite
def gemma3(draw: Any) -> TransformerConfig:
    config = replace(draw(llama()), **draw(two_kinds_of_layers()), qk_norm=True, bias=False)
    return replace(
        config, norm_position=NormPosition.sandwich, norm_unit_offset=True, scale_embeddings=True,
        feed_forward=draw(st.sampled_from([Activation.geglu_tanh, Activation.swiglu])),
        attention_scale=draw(st.sampled_from([None, 5**-0.5, 168**-0.5])) if config.head_dim is None else 7**-0.5,
        rope_base_local=draw(st.sampled_from([None, 300.0])), logit_softcap=draw(st.sampled_from([None, 9.0])),
        **draw(attention_biases),
    )  # fmt: skip


@st.composite
def gemma2(draw: Any) -> TransformerConfig:
    caps = {name: draw(st.sampled_from([None, 3.0])) for name in ("attention_softcap", "logit_softcap")}
    config = replace(draw(gemma3()), qk_norm=False, rope_base_local=None, **caps)
    return replace(config, rope_scaling=replace(config.rope_scaling, global_layers_only=False))


@st.composite
def phi3(draw: Any) -> TransformerConfig:
    window = draw(st.sampled_from([{}, {"sliding_window": 5, "global_attention_every": 0}]))
    fraction = draw(st.sampled_from([0.5, 1.0]))
    return replace(
        draw(llama()), bias=False, head_dim=None, rope_fraction=fraction, rope_scaling=RopeScalingConfig(), **window
    )


STRATEGIES = {
    "gpt2": gpt2(), "llama": llama(), "mistral": mistral(), "qwen2": qwen2(), "qwen3": qwen3(), "apertus": apertus(),
    "bert": bert(), "modernbert": modernbert(), "eurobert": eurobert(),
    "roberta": roberta(), "xlm-roberta": roberta(), "camembert": roberta(), "distilbert": distilbert(),
    "gpt_neox": gpt_neox(), "smollm3": smollm3(), "olmo2": olmo2(), "olmo3": olmo3(), "gemma3_text": gemma3(),
    "gemma2": gemma2(), "phi3": phi3(),
}  # fmt: skip


def test_every_family_is_tried() -> None:
    assert list(STRATEGIES) == [family.model_type for family in FAMILIES]


@many_or_few
@pytest.mark.parametrize("name", STRATEGIES)
def test_ours_goes_out_and_comes_back(name: str, shapes: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """transformers loads what we wrote, every tensor of it, computes the same, and we read the same bits again."""

    @settings(few, max_examples=shapes)
    @given(data=st.data())
    def check(data: DataObject) -> None:
        goes_out_and_comes_back(name, data, tmp_path_factory)

    check()


def goes_out_and_comes_back(name: str, data: DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = data.draw(STRATEGIES[name])
    config.vocab_multiple = data.draw(st.sampled_from([1, 64, 100]))
    family = next(family for family in FAMILIES if family.model_type == name)
    assert choose_family(config, family.causal, FAMILIES, name) is family
    model = random_model(config, config.vocabulary(BYTES.vocab_size), family.causal)
    small = data.draw(st.sampled_from([30_000, 10**9]))  # bytes of a shard
    folder = write_ours(tmp_path_factory.mktemp("folder"), family, model, max_shard_bytes=small)
    assert (len(list(folder.glob("model-*.safetensors"))) > 1) is (small == 30_000)

    rows = torch.randint(model.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    rows = without_padding(model, rows)
    bare = family.class_of(config) == family.bare
    expected = our_outputs(model, rows, bare)
    assert min(float(each.std()) for each in expected) > 0.3  # neither is flat
    compare(folder, family.class_of(config), rows, expected)

    again = open_model(folder)
    assert not again.shape.differences(config)  # type: ignore[attr-defined]
    assert again.shape.context_length == config.context_length
    assert again.objective.causal is family.causal
    loaded = again.load()
    assert loaded.vocab_size == model.vocab_size
    for parameter_name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(parameter_name), parameter), parameter_name


def gpt2_of_theirs(draw: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            n_positions=32, n_embd=32, n_layer=2, n_head=4, n_inner=draw(st.sampled_from([None, 40])),
            activation_function=draw(st.sampled_from(["gelu_new", "gelu", "relu2"])),
            tie_word_embeddings=draw(booleans), **ids(draw),
        )
    )  # fmt: skip


def ids(draw: Any) -> dict[str, Any]:
    return {
        "vocab_size": BYTES.vocab_size + draw(st.integers(0, 40)), "bos_token_id": 256, "eos_token_id": 256,
        "attn_implementation": draw(st.sampled_from(["eager", "sdpa"])),
    }  # fmt: skip


def llama_like(draw: Any) -> dict[str, Any]:
    return ids(draw) | {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": draw(st.sampled_from([1, 2, 4])), "max_position_embeddings": 64,
        "tie_word_embeddings": draw(booleans), "head_dim": draw(st.sampled_from([8, 16])), "pad_token_id": 257,
        "rope_parameters": draw(st.sampled_from([
            {"rope_type": "default", "rope_theta": 10_000.0},
            {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
            {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 4.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
            {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16},
        ])),
    }  # fmt: skip


def llama_of_theirs(draw: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**llama_like(draw), attention_bias=draw(booleans), mlp_bias=draw(booleans)))


def mistral_of_theirs(draw: Any) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**llama_like(draw), sliding_window=draw(st.sampled_from([None, 4, 100]))))


def qwen_windows(draw: Any) -> dict[str, Any]:
    return {
        "use_sliding_window": draw(booleans),
        "sliding_window": 5,
        "max_window_layers": draw(st.sampled_from([0, 3])),
    }


def qwen2_of_theirs(draw: Any) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**llama_like(draw), **qwen_windows(draw)))


def qwen3_of_theirs(draw: Any) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    windows = qwen_windows(draw) | draw(st.sampled_from([{}, {"max_window_layers": 2}]))
    return Qwen3ForCausalLM(Qwen3Config(**llama_like(draw), **windows, attention_bias=draw(booleans)))


def bert_of_theirs(draw: Any) -> Any:
    from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

    kind = draw(st.sampled_from([BertForMaskedLM, BertForPreTraining, BertModel]))
    return kind(
        BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
            max_position_embeddings=32, hidden_act=draw(st.sampled_from(["gelu", "gelu_new"])),
            **ids(draw) | {"bos_token_id": None},
        )
    )  # fmt: skip


def modernbert_of_theirs(draw: Any) -> Any:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    return ModernBertForMaskedLM(
        ModernBertConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, pad_token_id=257,
            max_position_embeddings=64, local_attention=draw(st.sampled_from([2, 7, 8])), cls_token_id=256,
            sep_token_id=256, global_attn_every_n_layers=draw(st.integers(1, 4)), **ids(draw),
        )
    )  # fmt: skip


def roberta_of_theirs(draw: Any) -> Any:
    import transformers

    name = draw(st.sampled_from(["Roberta", "XLMRoberta", "Camembert"]))
    kind = getattr(transformers, name + draw(st.sampled_from(["ForMaskedLM", "Model"])))
    pad = BYTES.pad_id
    return kind(
        kind.config_class(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
            max_position_embeddings=40 + pad, type_vocab_size=draw(st.sampled_from([1, 2])),
            **ids(draw) | {"pad_token_id": pad},
        )
    )  # fmt: skip


def distilbert_of_theirs(draw: Any) -> Any:
    from transformers import DistilBertConfig, DistilBertForMaskedLM, DistilBertModel

    kind = draw(st.sampled_from([DistilBertForMaskedLM, DistilBertModel]))
    return kind(
        DistilBertConfig(
            dim=32, n_layers=2, n_heads=4, hidden_dim=40, max_position_embeddings=32,
            sinusoidal_pos_embds=draw(booleans), **ids(draw),
        )
    )  # fmt: skip


def smollm3_of_theirs(draw: Any) -> Any:
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    bias = draw(booleans)
    layers = draw(st.sampled_from([None, [1, 0, 1], [1, 1, 1, 0], [0, 0, 0]]))
    return SmolLM3ForCausalLM(
        SmolLM3Config(
            **llama_like(draw), attention_bias=bias, mlp_bias=bias, no_rope_layers=layers,
            no_rope_layer_interval=draw(st.integers(1, 4)),
        )
    )  # fmt: skip


def olmo2_of_theirs(draw: Any) -> Any:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    return Olmo2ForCausalLM(Olmo2Config(**llama_like(draw)))


def olmo3_of_theirs(draw: Any) -> Any:
    from transformers import Olmo3Config, Olmo3ForCausalLM

    return Olmo3ForCausalLM(Olmo3Config(**two_kinds_of_theirs(draw)))


def two_kinds_of_theirs(draw: Any) -> dict[str, Any]:
    """A configuration with two kinds of layers, five here."""
    shared = llama_like(draw)
    scaling = shared.pop("rope_parameters")
    kinds = draw(st.sampled_from([None, ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
                                  ["full_attention"] * 2 + ["sliding_attention"] * 3]))  # fmt: skip
    return shared | {
        "num_hidden_layers": 5, "sliding_window": draw(st.sampled_from([4, 100])), "layer_types": kinds,
        "rope_parameters": draw(st.sampled_from([
            None, {"full_attention": scaling, "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}},
        ])),
    }  # fmt: skip


def gemma3_of_theirs(draw: Any) -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    shape = two_kinds_of_theirs(draw)
    pattern = draw(st.sampled_from([{}, {"sliding_window_pattern": 2}]))
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**shape, **pattern, query_pre_attn_scalar=draw(st.sampled_from([8, 5, 256])),
                         attention_bias=draw(booleans), final_logit_softcapping=draw(st.sampled_from([None, 9.0])))
    )  # fmt: skip


def gemma2_of_theirs(draw: Any) -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    shape = llama_like(draw) | {"attn_implementation": "eager"}
    caps = {f"{name}_logit_softcapping": draw(st.sampled_from([None, 3.0])) for name in ("attn", "final")}
    windows = {"sliding_window": draw(st.sampled_from([4, 100])), "query_pre_attn_scalar": draw(st.integers(5, 9))}
    return Gemma2ForCausalLM(Gemma2Config(**shape, **caps, **windows, attention_bias=draw(booleans)))


def phi3_of_theirs(draw: Any) -> Any:
    from transformers import Phi3Config, Phi3ForCausalLM

    shared = llama_like(draw)
    del shared["head_dim"]
    shared["rope_parameters"] = {"rope_type": "default", "rope_theta": draw(st.sampled_from([500.0, 10_000.0]))}
    share = draw(st.sampled_from([{}, {"partial_rotary_factor": 0.5}]))
    return Phi3ForCausalLM(Phi3Config(**shared, **share, sliding_window=draw(st.sampled_from([None, 5]))))


def gpt_neox_of_theirs(draw: Any) -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
            max_position_embeddings=64, use_parallel_residual=draw(booleans), tie_word_embeddings=draw(booleans),
            rotary_pct=draw(st.sampled_from([0.25, 0.5, 1.0])), hidden_act=draw(st.sampled_from(["gelu", "gelu_new"])),
            **ids(draw),
        )
    )  # fmt: skip


@many_or_few
@pytest.mark.parametrize(
    "theirs",
    [gpt2_of_theirs, llama_of_theirs, mistral_of_theirs, qwen2_of_theirs, qwen3_of_theirs, bert_of_theirs,
     modernbert_of_theirs, roberta_of_theirs, distilbert_of_theirs, gpt_neox_of_theirs,
     smollm3_of_theirs, olmo2_of_theirs, olmo3_of_theirs, gemma3_of_theirs, gemma2_of_theirs, phi3_of_theirs],
)  # fmt: skip
def test_theirs_comes_in_and_goes_out(theirs: Any, shapes: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What transformers saved gives its own logits here, and is written again as it was, to the bit."""

    @settings(few, max_examples=shapes)
    @given(data=st.data())
    def check(data: DataObject) -> None:
        comes_in_and_goes_out(theirs, data, tmp_path_factory)

    check()


def comes_in_and_goes_out(theirs: Any, data: DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = lively_weights(theirs(data.draw))
    folder = write_theirs(
        tmp_path_factory.mktemp("theirs"), model, max_shard_size=data.draw(st.sampled_from(["20KB", "1GB"]))
    )
    found = open_model(folder)
    ours = found.load().eval()
    tokens = torch.randint(model.config.vocab_size, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    tokens = without_padding(ours, tokens)
    with torch.no_grad():
        output = model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        hidden = ours(tokens)
    if type(model).__name__ in [family.bare for family in FAMILIES]:
        assert_close(hidden, output.last_hidden_state, atol=1e-4, rtol=1e-4)
    else:
        expected = output.prediction_logits if "prediction_logits" in output else output.logits
        assert expected.std() > 0.3  # neither is flat
        assert_close(ours.head(hidden), expected, atol=1e-4, rtol=1e-4)

    family = choose_family(found.shape, found.objective.causal, FAMILIES, model.config.model_type)  # type: ignore[arg-type]
    again = TensorFiles(sorted(write_ours(tmp_path_factory.mktemp("ours"), family, ours).glob("*.safetensors")))
    state = {family.names.canonical(name): value for name, value in model.state_dict().items()}
    assert again.shapes.keys() <= state.keys()
    for name in again.shapes:
        assert torch.equal(again.read(name), state[name]), name


def test_positions_that_do_not_start_behind_the_padding_token_are_refused(tmp_path: Path) -> None:
    config = shape("bert", feed_forward=Activation.gelu, position_offset=2)
    family = choose_family(config, False, FAMILIES)
    with pytest.raises(
        ConfigError, match=r"position_offset=2 and .* 257 do not fit.* Train with model.position_offset=258"
    ):
        write_ours(tmp_path / "folder", family, random_model(config, BYTES.vocab_size, False))


def test_the_guide_has_the_table_of_families() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "hugging-face-in-and-out.md").read_text(encoding="utf-8")
    table = page.partition("<!-- families -->\n")[2].partition("\n<!-- end -->")[0]
    assert table == families_table(), "the table is old: python -m pretrain.interop.families_table prints it"


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_their_tokenizer_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.model_type == name)
    config = shape("bert" if name == "bert" else "llama", qk_norm=False)
    folder = write_ours(tmp_path / "folder", family, random_model(config, BYTES.vocab_size, family.causal))
    compare_tokenizers(folder, BYTES, ([256], [] if family.causal else [256]))
    again = open_model(folder)
    assert again.tokenizer.fingerprint == BYTES.fingerprint  # what is put around a text does not count
    assert again.tokenizer.added_ids == ([256], [] if family.causal else [256])
    assert again.starts_with_bos
    assert BYTES.added_ids == ([], [])
