"""A pruned model in vLLM: its transformers backend around the project's own model, with attentions sized by layer.

The backend puts vLLM's linear layers, norms, embeddings and attentions in the place of those of transformers, instance
by instance. It takes every layer for one with an attention, which its number leads to. Here some layers have none.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.transformers import TransformersForCausalLM
from vllm.model_executor.models.transformers.base import VLLM_ATTN_ATTR
from vllm.model_executor.models.utils import maybe_prefix

from bench.inference.vllm_config import refuse_mixers, refuse_parallel
from methods.model.architectures import FAMILIES
from methods.model.inserted import StandIn
from methods.model.parts import Removed

SLIDING = "sliding_attention"


class HeadsApart(Attention):  # type: ignore[misc]
    """Gives each head's output an axis of its own, as GPT-2's attention takes it: it would join tokens otherwise."""

    def forward(self, *args: Any, **options: Any) -> Any:
        """Return the outputs, (1, T, heads, width)."""
        return super().forward(*args, **options).view(1, -1, self.num_heads, self.head_size)


class PrunedForCausalLM(TransformersForCausalLM):  # type: ignore[misc]  # there may be no vLLM here
    """Computes a folder of the model type prunebench."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        parallel, config = vllm_config.parallel_config, vllm_config.model_config.hf_config
        refuse_mixers(config)
        refuse_parallel(config, parallel.tensor_parallel_size, parallel.pipeline_parallel_size)
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def _create_hf_to_vllm_mapper(self) -> None:
        """Leave no tensor of the folder out, as GPT-2's patterns would, which match the biases of its attentions."""
        self.model._keys_to_ignore_on_load_unexpected = None
        super()._create_hf_to_vllm_mapper()

    def recursive_replace(self) -> None:
        """Give each attention the number of its layer, and replace modules by those of vLLM.

        The project numbers attentions by their places in a cache. These are others once an attention is gone.
        """
        family = FAMILIES[self.text_config.base_config["model_type"]]
        for number, layer in enumerate(attrgetter(family.layers.partition(".")[2])(self.model)):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = number
                # vLLM finds out what to fuse once for each class, so that a class of its own is looked at by itself
                if any(isinstance(child, StandIn | Removed) for child in module.children()):
                    module.__class__ = type(type(module).__name__, (type(module),), {})
        super().recursive_replace()

    def _create_attention_instances(self, prefix: str = "") -> None:
        """Give each attention that is left one of vLLM's, which stands for its keys and values in the cache."""
        config, shards = self.text_config, self.tp_group.world_size
        kind = HeadsApart if config.base_config["model_type"] == "gpt2" else Attention
        kinds = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
        for number, (name, fuser) in sorted(self.attention_fusers.items()):
            module, facts = self.get_submodule(name), config.per_layer_config[number]
            scale, sinks = fuser.scale(module), fuser.sinks(module)
            attention = kind(
                num_heads=facts.num_attention_heads // shards,
                head_size=config.head_dim,
                scale=config.head_dim**-0.5 if scale is None else scale,
                num_kv_heads=facts.num_key_value_heads // shards,
                cache_config=self.cache_config,
                quant_config=self.quant_config,
                logits_soft_cap=getattr(config, "attn_logit_softcapping", None),
                per_layer_sliding_window=config.sliding_window if kinds[number] == SLIDING else None,
                prefix=maybe_prefix(prefix, f"{name}.{VLLM_ATTN_ATTR}"),
                **({} if sinks is None else {"sinks": sinks}),
            )
            setattr(module, VLLM_ATTN_ATTR, attention)
