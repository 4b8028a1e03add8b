"""A stand-in for a model that comes with code of its own: Baichuan's structure, written as transformers 5 has it.

q, k and v are one matrix W_pack, the head scales its rows to length one in each forward, and positions are rotary
inside each attention or, with `alibi`, a bias of each head's own. Tests also put this file into a model's folder.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class BaichuanConfig(PreTrainedConfig):
    model_type = "baichuan"
    vocab_size: int = 128
    hidden_size: int = 32
    intermediate_size: int = 48
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    max_position_embeddings: int = 128
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    alibi: bool = False


class RMSNorm(nn.Module):
    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * (x * scale).to(x.dtype)


class Rotary(nn.Module):
    """Turns the two halves of a head against each other, (B, H, T, E)."""

    def forward(self, x, positions):
        half = x.shape[-1] // 2
        frequencies = 10000.0 ** (-torch.arange(half, device=x.device) / half)
        angles = (positions[..., None] * frequencies)[:, None].to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


class Attention(nn.Module):
    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.hidden_size, self.num_heads = config.hidden_size, config.num_attention_heads
        self.head_dim = self.hidden_size // self.num_heads
        self.W_pack = nn.Linear(self.hidden_size, 3 * self.hidden_size, bias=False)
        self.o_proj = nn.Linear(self.hidden_size, self.hidden_size, bias=False)
        if not config.alibi:
            self.rotary_emb = Rotary()

    def forward(self, hidden_states, attention_mask=None, position_ids=None, cache=None, **kwargs):
        B, T, _ = hidden_states.shape
        packed = self.W_pack(hidden_states).unflatten(-1, (3, self.hidden_size))
        q, k, v = (part.view(B, T, self.num_heads, self.head_dim).transpose(1, 2) for part in packed.unbind(-2))
        if not self.config.alibi:
            q, k = self.rotary_emb(q, position_ids), self.rotary_emb(k, position_ids)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        scores = q @ k.transpose(2, 3) / self.head_dim**0.5 + attention_mask
        mixed = scores.softmax(-1) @ v
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, self.hidden_size)), None


class MLP(nn.Module):
    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class BaichuanLayer(nn.Module):
    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(config, layer_idx), MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, attention_mask=None, position_ids=None, cache=None, **kwargs):
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states), attention_mask=attention_mask, position_ids=position_ids, cache=cache
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class BaichuanPreTrainedModel(PreTrainedModel):
    config_class = BaichuanConfig
    base_model_prefix = "model"
    _no_split_modules = ("BaichuanLayer",)


class BaichuanModel(BaichuanPreTrainedModel):
    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(BaichuanLayer(config, number) for number in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, use_cache=None, **kwargs):
        x = self.embed_tokens(input_ids)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(past, past + x.shape[1], device=x.device)[None]
        mask = create_causal_mask(
            config=self.config, inputs_embeds=x, attention_mask=attention_mask, cache=cache, position_ids=position_ids
        )
        if self.config.alibi:
            mask = mask + self._biases(position_ids, mask.shape[-1])
        for layer in self.layers[: self.config.num_hidden_layers]:
            x = layer(x, attention_mask=mask, position_ids=position_ids, cache=cache)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), cache=cache)

    def _biases(self, positions, length: int):
        """(1, H, T, S): each head minds the distance by a slope of its own."""
        H = self.config.num_attention_heads
        slopes = 2.0 ** (-8.0 * torch.arange(1, H + 1, device=positions.device) / H)
        distance = positions[0][:, None] - torch.arange(length, device=positions.device)
        return -(slopes[:, None, None] * distance)[None]


class NormHead(nn.Module):
    """Logits by the direction of each row alone."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(words, width))
        nn.init.normal_(self.weight)

    def forward(self, x):
        return nn.functional.linear(x, nn.functional.normalize(self.weight))


class BaichuanForCausalLM(BaichuanPreTrainedModel, GenerationMixin):
    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.model = BaichuanModel(config)
        self.lm_head = NormHead(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, input_ids=None, logits_to_keep=0, labels=None, **kwargs):
        out = self.model(input_ids=input_ids, **kwargs)
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, cache=out.cache)
