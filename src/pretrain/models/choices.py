"""What settings of a model choose among: norms, positions, activations, gates, heads, initial weights."""

from enum import Enum


class Norm(Enum):
    """How activations are normalized."""

    layer = "layer"  # Ba et al. 2016, https://arxiv.org/abs/1607.06450
    rms = "rms"  # Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467


class NormPosition(Enum):
    """Where a block normalizes: a layer's input, the sum after it, the output that is added, or input and output."""

    pre = "pre"  # Xiong et al. 2020, https://arxiv.org/abs/2002.04745
    post = "post"  # Vaswani et al. 2017, https://arxiv.org/abs/1706.03762
    output = "output"  # OLMo et al. 2024, https://arxiv.org/abs/2501.00656, section 3.1
    sandwich = "sandwich"  # input and output (Ding et al. 2021, https://arxiv.org/abs/2105.13290; Gemma 3)


class Position(Enum):
    """How a token's position enters the model."""

    learned = "learned"
    rope = "rope"  # Su et al. 2021, https://arxiv.org/abs/2104.09864


class Activation(Enum):
    """The feed-forward layer; names ending in "glu" are gated (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    gelu = "gelu"
    gelu_tanh = "gelu_tanh"  # the approximation of Hendrycks and Gimpel 2016, as in GPT-2
    relu2 = "relu2"  # So et al. 2021, https://arxiv.org/abs/2109.08668
    swiglu = "swiglu"
    geglu = "geglu"
    geglu_tanh = "geglu_tanh"  # with that approximation, as in Gemma


class Head(Enum):
    """Layers between the last hidden state and the vocabulary."""

    linear = "linear"
    mlm = "mlm"  # dense, activation, norm, then vocabulary with a bias (Devlin et al. 2019, its reference code)


class SoftcapKind(Enum):
    """The function that bounds logits and attention scores."""

    tanh = "tanh"
    sqrt = "sqrt"


class AttentionGate(Enum):
    """What a sigmoid of a layer's input multiplies in the output of its attention, before the output projection."""

    none = "none"
    head = "head"  # one factor for each head and token (Qiu et al. 2025, https://arxiv.org/abs/2505.06708)
    channel = "channel"  # one for each channel of each head


class ClassifierHead(Enum):
    """Layers between the pooled hidden state of a text and its labels."""

    linear = "linear"
    score = "score"  # without a bias, as transformers' decoders
    pooler = "pooler"  # dense, tanh, linear: BERT, RoBERTa
    relu = "relu"  # dense, ReLU, linear: DistilBERT
    gelu = "gelu"  # dense, GELU, linear: EuroBERT
    mlm = "mlm"  # dense, activation, norm, linear: ModernBERT


class Init(Enum):
    """Distribution of the initial weights, with standard deviation `init_std`."""

    normal = "normal"
    truncated_normal = "truncated_normal"  # cut at two standard deviations, as BERT and ModernBERT


class ResidualInit(Enum):
    """Initial scale of the two matrices of a block that write into the residual stream."""

    plain = "plain"
    scaled = "scaled"  # 1 / sqrt(2 n_layers) of the others (Radford et al. 2019, section 2.3)
    zero = "zero"  # every block starts as the identity (Yang et al. 2022, https://arxiv.org/abs/2203.03466, appendix D)


class Parametrization(Enum):
    """How initial weights, learning rates, scores and logits depend on the width of a model."""

    standard = "standard"
    mup = "mup"  # Yang et al. 2022, https://arxiv.org/abs/2203.03466, table 8
