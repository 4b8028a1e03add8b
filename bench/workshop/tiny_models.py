"""Draws tiny models of every family from configurations, on which methods are checked: random weights, no network."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerFast

from methods.checkpoint.pruned_config import auto_class_of
from methods.model.calibration import Calibration

VOCABULARY = 128
LAYERS = 6
SEQUENCES, LENGTH = 6, 24  # of the calibration
SPECIAL = 3  # tokens at the front of the vocabulary that no text has

# Every structural switch that a family can have is on: grouped queries, tied and untied heads, biases, windows.
TINY: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "qwen2": {
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 2,
        "tie_word_embeddings": True,
    },
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "phi3": {"num_key_value_heads": 2, "pad_token_id": 0},
    "gpt2": {"n_positions": 128},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1},
    "gpt_neox": {},
    "phi": {},
}
MIXERS_AND_ATTENTIONS = [*["linear_attention"] * 3, "full_attention", "linear_attention", "full_attention"]
DELTA_NET: dict[str, Any] = {  # with more value heads than key heads, of other widths
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
}
MIXTURES: dict[str, dict[str, Any]] = {  # of experts, which have tests of their own beside those of all families
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 8},
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "moe_intermediate_size": 24,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
    "olmoe": {"num_key_value_heads": 2, "num_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": True},
    "gpt_oss": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "glm4_moe": {  # two groups of four experts, of which a token may take one
        "num_key_value_heads": 2,
        "head_dim": 16,
        "use_qk_norm": True,
        "moe_intermediate_size": 24,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 1.5,
    },
    "qwen3_next": DELTA_NET
    | {
        "full_attention_interval": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
}
MAMBA2: dict[str, Any] = {"mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 6, "mamba_chunk_size": 8}
HYBRIDS: dict[str, dict[str, Any]] = {  # of mixers and attentions
    "qwen3_5_text": DELTA_NET | {"layer_types": MIXERS_AND_ATTENTIONS, "tie_word_embeddings": True},
    "granitemoehybrid": MAMBA2
    | {
        "num_key_value_heads": 2,
        "layer_types": MIXERS_AND_ATTENTIONS,
        "position_embedding_type": "rope",
        "attention_bias": True,
        "mamba_proj_bias": True,
        "num_local_experts": 0,
        "shared_intermediate_size": 48,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.2,
    },
    "bamba": MAMBA2
    | {
        "num_key_value_heads": 2,
        "attn_layer_indices": [3, 5],
        "attention_bias": True,
        "mlp_bias": True,
        "mamba_proj_bias": True,
    },
    "falcon_h1": MAMBA2  # both in each layer, every factor another number
    | {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "mamba_d_ssm": 40,
        "mamba_rms_norm": True,
        "mamba_norm_before_gate": False,
        "mamba_proj_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "projectors_bias": True,
        "embedding_multiplier": 3.0,
        "lm_head_multiplier": 0.5,
        "attention_in_multiplier": 0.7,
        "attention_out_multiplier": 1.3,
        "key_multiplier": 0.6,
        "mlp_multipliers": [0.8, 1.2],
        "ssm_in_multiplier": 1.1,
        "ssm_out_multiplier": 0.4,
        "ssm_multipliers": [0.9, 0.5, 0.7, 1.4, 0.6],
    },
    "nemotron_h": {  # one sublayer in each layer
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "layers_block_type": ["linear_attention", "mlp", "linear_attention", "full_attention", "mlp", "full_attention"],
        "mlp_bias": True,
        "use_bias": True,
        "mamba_num_heads": 4,
        "mamba_head_dim": 10,
        "n_groups": 2,
        "ssm_state_size": 6,
        "chunk_size": 8,
    },
}
WITH_MIXERS = (*HYBRIDS, "qwen3_next")
LATER: dict[str, dict[str, Any]] = {
    "granite": {
        "num_key_value_heads": 2,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.2,
    },
    "smollm3": {
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 8,
        "no_rope_layer_interval": 2,
        "pad_token_id": 0,
    },
    "olmo2": {"num_key_value_heads": 2},
    "olmo3": {"num_key_value_heads": 2, "sliding_window": 8},
    "starcoder2": {"num_key_value_heads": 2, "sliding_window": 8, "tie_word_embeddings": True},
    "stablelm": {"num_key_value_heads": 2, "use_qkv_bias": True},
    "nemotron": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "glm4": {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0},
    "cohere2": {"num_key_value_heads": 2, "sliding_window": 8, "attention_bias": True, "logit_scale": 0.25},
    "gemma3": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "qwen3_vl": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
    },
    "llava": {"num_key_value_heads": 2},
}
IMAGE = 5  # the token in whose place an image's states stand
VISION: dict[str, dict[str, Any]] = {  # what families that read images have beside their text tower
    "gemma3": {
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "vision_use_head": False,
        },
        "text_config": {"model_type": "gemma3_text"},
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
    },
    "qwen3_vl": {
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "depth": 3,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 2],
        },
        "text_config": {"model_type": "qwen3_vl_text"},
        "image_token_id": IMAGE,
    },
    "llava": {
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "projection_dim": 16,
        },
        "text_config": {"model_type": "llama"},
        "image_seq_length": 4,
        "image_token_index": IMAGE,
        "vision_feature_layer": -1,
    },
}


def draw_tiny_model(family: str, *, layers: int = LAYERS, seed: int = 0, **overrides: Any) -> nn.Module:
    """Return a random float32 model of a family that the tables above name: width 32, four query heads, 128 positions.

    overrides  fields of its configuration, or of that of its text tower
    """
    options = options_of_tiny_model(layers) | (TINY | LATER | MIXTURES | HYBRIDS)[family] | overrides
    if family in VISION:
        options = VISION[family] | {"text_config": VISION[family]["text_config"] | options}
    torch.default_generator.manual_seed(seed)  # that of all devices keeps the stack of each call, for 0.7 ms
    config = AutoConfig.for_model(family, **options)
    return prepare_weights(auto_class_of(config).from_config(config, dtype=torch.float32))


def options_of_tiny_model(layers: int) -> dict[str, Any]:
    """Return the fields of a configuration that all tiny models share."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@torch.no_grad()
def prepare_weights(model: nn.Module) -> nn.Module:
    """Return the model with larger matrices, and with norms and biases that are not ones and zeros, ready to run.

    Ones and zeros would hide mistakes.
    """
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif parameter.any():
            parameter.mul_(4.0)
        else:  # as a projector begins
            parameter.copy_(0.3 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):  # of a router, zero too
            buffer.copy_(0.1 * torch.randn_like(buffer))
    return model.eval()


def draw_calibration(seed: int = 0) -> Calibration:
    """Return random tokens for methods to look at, in six sequences of 24."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(SPECIAL, VOCABULARY, (SEQUENCES, LENGTH), generator=generator)
    return Calibration(ids, torch.ones_like(ids, dtype=torch.bool), seed=seed)


def make_tokenizer() -> Any:
    """Return a tokenizer of bytes with one merge, as every format holds it: 260 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(("<pad>", "<s>", "</s>", *alphabet, "th"))}
    backend = Tokenizer(models.BPE(vocabulary, merges=[("t", "h")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
