"""The families of language models: what each calls its parts. A family is one row of FAMILIES.

Letters: H = query heads, G = key/value heads, E = head width, J = experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Mixture:
    """Says where a family keeps a mixture of experts. Paths begin at a layer, names at what stands before them.

    Every tensor of the router and of the bank has the experts on its first axis.
    """

    router: str = "mlp.gate"  # scores the experts, a row for each
    bank: str = "mlp.experts"  # computes them, all in one
    taken: str = "top_k"  # of the router: the experts that a token takes
    groups: str = ""  # of the router: groups of experts, of which a token may take some alone
    taken_groups: str = ""  # of the router: the groups that a token may take
    counts: tuple[str, ...] = ("num_experts",)  # what router, bank, model and configuration call J
    plain: str = ""  # the configuration's list of layers that have a single MLP instead
    every: str = ""  # what the configuration calls the distance from one mixture to the next


@dataclass(frozen=True)
class Family:
    """Says where a family keeps its parts. Paths of layers, embed, positions, final_norm begin at the model.

    All others begin at a layer.
    """

    layers: str
    embed: str
    final_norm: str
    attn: str
    qkv: tuple[str, ...]  # read the residual for the attention; one name where q, k and v are fused
    out: str  # writes the attention's result into the residual
    mlp: str  # "" where the layer itself holds the MLP's matrices
    up: tuple[str, ...]  # read the residual for the MLP; one name where gate and up are fused
    down: str  # writes the MLP's result into the residual
    attn_norm: str
    mlp_norm: str
    positions: str = ""  # a learned table of positions
    post_norms: tuple[str, ...] = ()  # norms between a sub-block's result and the residual
    centred: bool = False  # LayerNorm, which subtracts the mean; else RMSNorm
    gain_offset: float = 0.0  # a norm multiplies by gain_offset + weight
    one_width: bool = False  # the model's forward takes the last state to be as wide as the embedding
    parallel: bool = False  # attention and MLP both read the layer's input
    interleaved: bool = False  # a fused q-k-v matrix has q, k and v head by head, (H, 3, E), not one below the other
    counts: tuple[tuple[str, str], ...] = ()  # sizes that the attention's forward does not read off its weights
    mlp_width: str = "intermediate_size"  # what the configuration calls I
    unit_rows: bool = False  # a head that is no linear layer scales its rows to length one in each forward
    mixture: Mixture | None = None  # the mixture of experts that stands for the MLP of its layers, or of some
    rotary: str = ""  # turns the attention's heads by position; without it each has a bias of its own, and none can go


MIXTURE = Mixture()

LLAMA = Family(
    layers="model.layers",
    embed="model.embed_tokens",
    final_norm="model.norm",
    attn="self_attn",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    mlp="mlp",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
)
GEMMA2 = replace(
    LLAMA,
    mlp_norm="pre_feedforward_layernorm",
    post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    gain_offset=1.0,
)

FAMILIES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": replace(LLAMA, gain_offset=1.0),
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2,
    "phi3": replace(
        LLAMA,
        qkv=("self_attn.qkv_proj",),
        up=("mlp.gate_up_proj",),
        counts=(("config.num_attention_heads", "H"), ("num_key_value_heads", "G")),
    ),
    "baichuan": replace(  # comes with code of its own
        LLAMA,
        qkv=("self_attn.W_pack",),
        counts=(("num_heads", "H"), ("hidden_size", "HE")),
        unit_rows=True,
        rotary="rotary_emb",
    ),
    "mixtral": replace(LLAMA, mixture=MIXTURE),
    "qwen3_moe": replace(LLAMA, mixture=replace(MIXTURE, plain="mlp_only_layers", every="decoder_sparse_step")),
    "olmoe": replace(LLAMA, mixture=MIXTURE),
    "gpt2": Family(
        layers="transformer.h",
        embed="transformer.wte",
        positions="transformer.wpe",
        final_norm="transformer.ln_f",
        attn="attn",
        qkv=("attn.c_attn",),
        out="attn.c_proj",
        mlp="mlp",
        up=("mlp.c_fc",),
        down="mlp.c_proj",
        attn_norm="ln_1",
        mlp_norm="ln_2",
        centred=True,
        one_width=True,
        counts=(("num_heads", "H"), ("split_size", "HE")),
        mlp_width="n_inner",
    ),
    "opt": Family(
        layers="model.decoder.layers",
        embed="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        final_norm="model.decoder.final_layer_norm",
        attn="self_attn",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out="self_attn.out_proj",
        mlp="",
        up=("fc1",),
        down="fc2",
        attn_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
        centred=True,
        counts=(("num_heads", "H"),),
        mlp_width="ffn_dim",
    ),
    "gpt_neox": Family(
        layers="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        attn="attention",
        qkv=("attention.query_key_value",),
        out="attention.dense",
        mlp="mlp",
        up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        attn_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
        centred=True,
        interleaved=True,
    ),
    "phi": replace(
        LLAMA,
        final_norm="model.final_layernorm",
        out="self_attn.dense",
        up=("mlp.fc1",),
        down="mlp.fc2",
        mlp_norm="input_layernorm",
        centred=True,
        parallel=True,
    ),
}
