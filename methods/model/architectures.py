"""The families of language models, and the names that each has for its parts. A family is one row of FAMILIES.

Letters: H = query heads, G = key/value heads, E = head width, J = experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, get_args

Axis = Literal["heads", "channels", "states", "experts", "layers", "residual"]
AXES: tuple[Axis, ...] = get_args(Axis)
LISTS = ("layer_types", "no_rope_layers")  # lists of a configuration with an entry for each layer


def _every(config: Any, attention: Any) -> bool:
    return True


def _turns_no_heads(config: Any, attention: Any) -> bool:
    return not hasattr(attention, "rotary_emb")


def _norms_each_head(config: Any, attention: Any) -> bool:
    return bool(config.qk_layernorm)


def _norms_behind(config: Any, attention: Any) -> bool:
    return not config.do_layer_norm_before


def _projects_its_embedding(config: Any, attention: Any) -> bool:
    return bool(config.word_embed_proj_dim != config.hidden_size)


def _has_no_final_norm(config: Any, attention: Any) -> bool:
    return bool(config._remove_final_layer_norm)


def _has_experts(config: Any, attention: Any) -> bool:
    return bool(config.num_local_experts)


def _has_layers_of_experts(config: Any, attention: Any) -> bool:
    return "moe" in config.layer_types


def _projects_for_experts(config: Any, attention: Any) -> bool:
    return config.moe_latent_size is not None


@dataclass(frozen=True)
class Uncut:
    """Says why models of a family cannot be cut along an axis.

    axis     heads (key/value heads with their query heads), channels (of the MLP), states (channels of the state of a
             mixer), experts, layers, or residual
    because  a clause behind "cannot be cut: "
    models   which of the family's models, for a reader; "" for all
    of       says whether a model is one of them, by its configuration and one of its attentions: a function with a name
             of its own, so that a layer that refers to its family can be sent to another process
    """

    axis: Axis
    because: str
    models: str = ""
    of: Callable[[Any, Any], bool] = _every


@dataclass(frozen=True)
class Mixture:
    """Says where a family keeps a mixture of experts. Paths begin at a layer, names at what stands before them.

    Every tensor of the router and of the bank has the experts on its first axis.
    """

    router: str = "mlp.gate"  # scores the experts, a row for each
    bank: str = "mlp.experts"  # computes them, all in one
    experts_per_token: str = "top_k"  # of the router: how many experts a token takes
    groups: str = ""  # of the router: groups of experts, of which a token may take some alone
    groups_per_token: str = ""  # of the router: from how many groups a token may take experts
    shared: str = ""  # an MLP beside the bank that every token takes, and that stays
    gate_up: str = "gate_up_proj"  # of the bank: gate and up in one; a bias has `_bias` behind its matrix's name
    down: str = "down_proj"  # of the bank
    gated: bool = True  # there is a gate
    transposed: bool = False  # the bank's matrices are (in, out)
    paired: bool = False  # gate and up of a channel lie side by side, and not in two halves
    pair: bool = False  # the mixture's forward gives back its result and the router's weights
    counts: tuple[str, ...] = ("num_experts",)  # what router, bank, model and configuration call J
    plain: str = ""  # the configuration's list of layers that have a single MLP instead
    every: str = ""  # what the configuration calls the distance from one mixture to the next
    first: str = ""  # the configuration's number of layers that have a single MLP instead and come before all others


@dataclass(frozen=True)
class Mixer:
    """Says where a family keeps what stands for the attention of some layers, and carries a state from token to token.

    A layer has either this or an attention, or both beside each other: then they are one sublayer. Paths begin at a
    layer, names at the mixer.

    A head that can go is a key head with all its value heads, and nothing else may depend on it. Mamba-2 calls it a
    group. Rows are blocks one behind the other, each with all heads in their order. A block has letters for what it has
    of a head: k the width of a key, v that of all its values, h its value heads.
    """

    path: str
    reads: tuple[str, ...]  # read the residual for the mixer
    out: str  # writes its result into the residual
    state: tuple[str, str, str]  # value heads, width of a key and of a value: the numbers of its state, in float32
    macs: int  # multiply-accumulates of a token for each of these numbers: what updates and reads the state
    own: tuple[str, ...]  # its other parameters, which are neither matrices nor a norm
    conv: str = "conv1d"  # the convolution of each channel over the latest tokens
    attentions: str = ""  # the configuration's list of the layers that have an attention; "": it has layer_types
    kind: str = ""  # the entry of layer_types that its layers have, where their path does not say it
    beside: bool = False  # it stands beside the attention of each layer, and reads the same normed residual
    factor: str = ""  # what the layer calls the number by which it multiplies the mixer's result
    whole: str = ""  # why none of its heads can go; "" where they can
    heads: tuple[str, ...] = ()  # sizes in proportion to the key heads, their count first
    rows: tuple[tuple[str, tuple[str, ...]], ...] = ()  # of matrices, see below
    rows_beside: tuple[tuple[str, tuple[str, ...]], ...] = ()  # of the convolution, the norm and `own`
    counts: tuple[str, str] = ("", "")  # what the configuration calls the key heads and the value heads
    channels: str = ""  # what it calls the width of a key, where its channels can go; "" where they cannot


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
    attn_norm: str  # in front of the attention; "" for none
    mlp_norm: str  # in front of the MLP; "" for none
    positions: str = ""  # a learned table of positions
    post_norms: tuple[str, ...] = ()  # norms between a sub-block's result and the residual
    centred: bool = False  # LayerNorm, which subtracts the mean; else RMSNorm
    gain_offset: float = 0.0  # a norm multiplies by gain_offset + weight
    one_width: bool = False  # the model's forward takes the last state to be as wide as the embedding
    parallel: bool = False  # attention and MLP both read the layer's input
    turns_neighbours: bool = False  # positions turn dimensions 2i and 2i + 1 of a head together, not i and i + half
    interleaved: bool = False  # a fused q-k-v matrix has q, k and v head by head, (H, 3, E), not one below the other
    counts: tuple[tuple[str, str], ...] = ()  # sizes that the attention's forward does not read off its weights
    mlp_width: str = "intermediate_size"  # what the configuration calls I
    unit_rows: bool = False  # a head that is no linear layer scales its rows to length one in each forward
    mixture: Mixture | None = None  # the mixture of experts that stands for the MLP of its layers, or of some
    gated_heads: bool = False  # q has twice the rows: behind those of each head stand those of a gate of its output
    mixer: Mixer | None = None  # what stands for the attention of some layers
    beside: str = ""  # a module whose result is added to the MLP's, in layers that have it
    alone: tuple[str, ...] = ()  # a layer has one sublayer: an MLP if layer_types has one of these, or an attention
    tupled: int = 0  # entries of the tuple that a layer returns, the states first; 0: it returns the states alone
    factors: tuple[str, ...] = ()  # paths of the numbers by which the outputs of `out` and of `down` are multiplied
    scales_mlp: bool = False  # the MLP's own forward multiplies by the second of them, and not the layer
    entry: str = ""  # what the layer calls the number by which it multiplies what the attention reads
    vision: tuple[str, ...] = ()  # paths from the model to what reads images, beside a text tower; it never changes
    added: str = ""  # the configuration's list with an entry for each of the first layers behind which images enter
    uncut: tuple[Uncut, ...] = ()  # the axes along which its models, or some of them, cannot be cut

    def wrap(self, x: Any) -> Any:
        """Return what a layer with these states for its output returns: a tuple in some families."""
        return (x, *(None,) * (self.tupled - 1)) if self.tupled else x

    def never(self, axis: str) -> bool:
        """Say whether none of its models can be cut along an axis."""
        if axis == "head widths":
            return self.never("heads") or (self.mixer is not None and not self.mixer.beside)
        if axis == "states":
            return self.mixer is None or not self.mixer.channels
        without = axis == "experts" and self.mixture is None
        return without or any(uncut.axis == axis and not uncut.models for uncut in self.uncut)


NORMED = Uncut("residual", "norms stand between its sub-blocks and the residual, and no rotation survives them")
SINKS = Uncut("heads", "each query head has a logit of its own that takes attention (a sink), which is not cut")
ALL_HEADS = Uncut("heads", "q and k are normed over all heads at once, so that each head depends on the others")

PROJECTED = Uncut("residual", "the projector of its vision tower writes into the residual too, and is not cut")
MIXED_RESIDUAL = Uncut("residual", "its mixers read the residual by matrices that no rotation has been built for")
DELTA_NET = Mixer(
    path="linear_attn",
    reads=("linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.in_proj_b", "linear_attn.in_proj_a"),
    out="linear_attn.out_proj",
    state=("num_v_heads", "head_k_dim", "head_v_dim"),
    own=("A_log", "dt_bias"),
    macs=3,  # S k, the update by beta (v - S k) k^T, and S q
    heads=("num_k_heads", "num_v_heads", "key_dim", "value_dim"),
    rows=(("in_proj_qkv", ("k", "k", "v")), ("in_proj_z", ("v",)), ("in_proj_b", ("h",)), ("in_proj_a", ("h",))),
    rows_beside=(("conv1d", ("k", "k", "v")), ("A_log", ("h",)), ("dt_bias", ("h",))),
    counts=("linear_num_key_heads", "linear_num_value_heads"),
)
MAMBA2 = Mixer(
    path="mamba",
    reads=("mamba.in_proj",),
    out="mamba.out_proj",
    state=("num_heads", "ssm_state_size", "head_dim"),
    own=("A_log", "D", "dt_bias"),
    macs=2,  # the update by dt x B^T, and S C
    whole="one norm is over all of them",
    heads=("n_groups", "num_heads", "intermediate_size"),
    rows=(("in_proj", ("v", "v", "k", "k", "h")),),  # z, x, B, C, dt
    rows_beside=(
        ("conv1d", ("v", "k", "k")),
        ("norm", ("v",)),  # over each group alone
        *((name, ("h",)) for name in ("A_log", "D", "dt_bias")),
    ),
    counts=("mamba_n_groups", "mamba_n_heads"),
    channels="mamba_d_state",
)

MIXTURE = Mixture()
MIXED = tuple(Uncut(axis, "a mixture of experts stands for its MLP") for axis in ("channels", "residual"))

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
    uncut=(NORMED,),
)

BAMBA = replace(
    LLAMA,
    final_norm="model.final_layernorm",
    mlp="feed_forward",
    up=("feed_forward.gate_proj", "feed_forward.up_proj"),
    down="feed_forward.down_proj",
    mlp_norm="pre_ff_layernorm",
)
OLMO = replace(
    LLAMA,
    attn_norm="",
    mlp_norm="",
    post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    uncut=(ALL_HEADS, NORMED),
)


def _with_vision(text: Family, *vision: str) -> Family:
    """Return the family whose text tower is a model of the family `text`, beside modules that read images."""
    layers, embed, norm = (f"model.language_{path}" for path in (text.layers, text.embed, text.final_norm))
    return replace(text, layers=layers, embed=embed, final_norm=norm, vision=vision, uncut=(*text.uncut, PROJECTED))


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
        uncut=(
            Uncut(
                "heads",
                "each head has a bias of its own for positions (ALiBi)",
                "with ALiBi, as Baichuan2-13B",
                _turns_no_heads,
            ),
        ),
    ),
    "mixtral": replace(LLAMA, mixture=MIXTURE, uncut=MIXED),
    "qwen3_moe": replace(
        LLAMA, mixture=replace(MIXTURE, plain="mlp_only_layers", every="decoder_sparse_step"), uncut=MIXED
    ),
    "olmoe": replace(LLAMA, mixture=MIXTURE, uncut=(ALL_HEADS, *MIXED)),
    "gpt_oss": replace(
        LLAMA,
        mixture=replace(MIXTURE, router="mlp.router", transposed=True, paired=True, pair=True),
        uncut=(SINKS, *MIXED),
    ),
    "glm4_moe": replace(  # with the router of deepseek_v3
        LLAMA,
        mixture=replace(
            MIXTURE,
            groups="num_group",
            groups_per_token="topk_group",
            shared="mlp.shared_experts",
            counts=("num_experts", "num_local_experts"),
            first="first_k_dense_replace",
        ),
        uncut=MIXED,
    ),
    "qwen3_next": replace(
        LLAMA,
        gain_offset=1.0,
        gated_heads=True,
        mixer=replace(
            DELTA_NET,
            reads=("linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"),
            rows=(("in_proj_qkvz", ("kkvv",)), ("in_proj_ba", ("hh",))),  # head by head
        ),
        mixture=replace(MIXTURE, plain="mlp_only_layers", every="decoder_sparse_step", shared="mlp.shared_expert"),
        uncut=MIXED,
    ),
    "qwen3_5_text": replace(LLAMA, gain_offset=1.0, gated_heads=True, mixer=DELTA_NET, uncut=(MIXED_RESIDUAL,)),
    "bamba": replace(
        BAMBA,
        tupled=2,
        mixer=replace(MAMBA2, attentions="attn_layer_indices"),
        uncut=(MIXED_RESIDUAL,),
    ),
    "falcon_h1": replace(
        BAMBA,
        tupled=1,
        factors=("attn_out_multiplier", "feed_forward.down_multiplier"),
        scales_mlp=True,
        entry="attention_in_multiplier",
        mixer=replace(
            MAMBA2,
            beside=True,
            factor="ssm_out_multiplier",
            whole="each layer has multipliers for as many as the configuration counts, set anew where a model loads",
            channels="",  # for the same reason
        ),
        uncut=(MIXED_RESIDUAL,),
    ),
    "granitemoehybrid": replace(
        LLAMA,
        mlp="shared_mlp",
        up=("shared_mlp.input_linear",),
        down="shared_mlp.output_linear",
        mlp_width="shared_intermediate_size",
        factors=("residual_multiplier", "residual_multiplier"),
        mixer=MAMBA2,
        mixture=replace(
            MIXTURE,
            router="block_sparse_moe.router",
            bank="block_sparse_moe.experts",
            shared="shared_mlp",
            counts=("num_experts", "num_local_experts"),
        ),
        beside="block_sparse_moe",
        uncut=(
            MIXED_RESIDUAL,
            replace(MIXED[0], models="with experts, as Granite 4.0 H Tiny", of=_has_experts),
        ),
    ),
    "nemotron_h": Family(
        layers="model.layers",
        embed="model.embeddings",
        final_norm="model.norm_f",
        attn="mixer",
        qkv=("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"),
        out="mixer.o_proj",
        mlp="mixer",
        up=("mixer.up_proj",),
        down="mixer.down_proj",
        attn_norm="norm",
        mlp_norm="norm",
        alone=("mlp", "moe"),
        mixer=replace(
            MAMBA2,
            path="mixer",
            reads=("mixer.in_proj",),
            out="mixer.out_proj",
            kind="linear_attention",
            whole="",
            counts=("n_groups", "mamba_num_heads"),
            channels="ssm_state_size",
        ),
        mixture=replace(
            MIXTURE,
            router="mixer.gate",
            bank="mixer.experts",
            shared="mixer.shared_experts",
            groups="num_group",
            groups_per_token="topk_group",
            gate_up="up_proj",
            gated=False,
            counts=("num_experts", "num_local_experts"),
        ),
        uncut=(
            MIXED_RESIDUAL,
            replace(MIXED[0], models="with experts, as Nemotron 3 Nano", of=_has_layers_of_experts),
            Uncut(
                "experts",
                "they read a projection of the residual",
                "with a moe_latent_size",
                _projects_for_experts,
            ),
        ),
    ),
    "granite": replace(LLAMA, factors=("residual_multiplier", "residual_multiplier")),
    "smollm3": LLAMA,
    "olmo2": OLMO,
    "olmo3": OLMO,
    "starcoder2": replace(LLAMA, up=("mlp.c_fc",), down="mlp.c_proj", centred=True),
    "stablelm": replace(
        LLAMA,
        centred=True,
        counts=(("num_heads", "H"), ("num_key_value_heads", "G")),
        uncut=(
            Uncut(
                "heads",
                "q and k of each head have a norm of their own in a list, which is not cut",
                "with qk_layernorm=True, as StableLM 2 12B",
                _norms_each_head,
            ),
        ),
    ),
    "nemotron": replace(LLAMA, up=("mlp.up_proj",), centred=True, gain_offset=1.0),
    "glm4": replace(
        LLAMA,
        up=("mlp.gate_up_proj",),
        post_norms=("post_self_attn_layernorm", "post_mlp_layernorm"),
        turns_neighbours=True,
        uncut=(NORMED,),
    ),
    "cohere2": replace(LLAMA, mlp_norm="input_layernorm", centred=True, parallel=True, turns_neighbours=True),
    "gemma3": _with_vision(GEMMA2, "model.vision_tower", "model.multi_modal_projector"),
    "qwen3_vl": replace(_with_vision(LLAMA, "model.visual"), added="vision_config.deepstack_visual_indexes"),
    "llava": _with_vision(LLAMA, "model.vision_tower", "model.multi_modal_projector"),
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
        uncut=(
            replace(
                NORMED,
                models="with do_layer_norm_before=False, as OPT-350M",
                of=_norms_behind,
            ),
            Uncut(
                "residual",
                "its embedding is projected to the residual's width",
                "whose word_embed_proj_dim is not hidden_size",
                _projects_its_embedding,
            ),
            Uncut(
                "residual",
                "it has no final norm",
                "with _remove_final_layer_norm=True",
                _has_no_final_norm,
            ),
        ),
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


def has_mixers(config: Any) -> bool:
    """Say whether a model of this configuration has layers that carry a state from token to token."""
    family = FAMILIES.get(config.model_type)
    return family is not None and family.mixer is not None


def table_of_families() -> list[tuple[str, str, str]]:
    """Return a heading, and for neighbours alike the axes along which their models can be cut and why others cannot."""
    rows = [("family", "can be cut along", "cannot")]
    for (axes, reasons), names in groupby(FAMILIES, key=lambda name: _axes_and_reasons(FAMILIES[name])):
        rows.append((", ".join(names), axes, reasons))
    return rows


def _axes_and_reasons(family: Family) -> tuple[str, str]:
    reasons = [f"{uncut.axis}{f' {uncut.models}' if uncut.models else ''}: {uncut.because}" for uncut in family.uncut]
    if family.mixer is not None and family.mixer.whole:
        reasons.append(f"heads of mixers: {family.mixer.whole}")
    return ", ".join(axis for axis in AXES if not family.never(axis)), "; ".join(reasons)
