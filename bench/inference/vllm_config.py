"""Tells transformers inside vLLM's processes what pruned models are. It needs no vLLM.

vLLM pickles a configuration to the processes of its engine, so that the classes stand at the top of this module.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig, AutoModel, LlamaConfig

from methods.checkpoint.pruned_config import PrunedConfig, class_that_cuts, has_vision
from methods.checkpoint.transformers_compat import WIDTHS, reason_for_own_code
from methods.model.architectures import FAMILIES

OWN = ("model_type", "architectures", "dtype", "transformers_version", "num_hidden_layers")  # not the base's
NEMOTRON_NAS = "nemotron-nas"


class ServedConfig(PrunedConfig):  # type: ignore[no-untyped-call]
    """Says also what the base's configuration says, since vLLM reads that from the whole model's."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """Return the configuration of a folder's config.json.

        Its `hidden_size` is what the head reads, and `logit_scale` what vLLM multiplies logits by.
        """
        base = PrunedConfig(base_config=config_dict["base_config"]).base()
        if has_vision(base):
            raise ValueError(f"the plugin serves models of text alone, and this {base.model_type} has a vision tower")
        facts = {name: value for name, value in base.to_dict().items() if name not in OWN} | config_dict
        facts["head_dim"] = getattr(base, "head_dim", None) or base.hidden_size // base.num_attention_heads
        if residual := config_dict.get("residual"):
            facts["hidden_size"] = residual["output_size"]
        if divisor := getattr(base, "logits_scaling", None):
            facts["logit_scale"] = 1 / divisor
        return super().from_dict(facts, **options)


class PrunedBase:
    """Stands behind AutoModel for a ServedConfig, and gives it the model without its head."""

    config_class = ServedConfig

    @classmethod
    def _from_config(cls, config: ServedConfig, **options: Any) -> Any:
        whole = class_that_cuts(config)._from_config(config, **options)
        return getattr(whole, whole.base_model_prefix)


class NemotronNasConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """Has `block_configs` as objects, as vLLM reads them, and writes them as JSON has them."""

    model_type = NEMOTRON_NAS

    def __post_init__(self, **more: Any) -> None:
        """Take `block_configs` out of what LlamaConfig has no field for."""
        blocks = more.pop("block_configs", None) or []
        super().__post_init__(**more)  # type: ignore[no-untyped-call]
        self.block_configs = [_to_object(block) for block in blocks]

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values."""
        blocks, self.block_configs = self.block_configs, []
        try:
            plain: dict[str, Any] = super().to_dict()
        finally:
            self.block_configs = blocks
        return plain | {"block_configs": [_to_plain(block) for block in blocks]}


def _to_object(block: Any) -> Any:
    """Return the entry of a layer with its parts as attributes."""
    if not isinstance(block, dict):
        return block
    return SimpleNamespace(**{part: SimpleNamespace(**facts) for part, facts in block.items()})


def _to_plain(block: SimpleNamespace) -> dict[str, Any]:
    """Return the entry of a layer as JSON has it."""
    return {part: dict(vars(facts)) for part, facts in vars(block).items()}


def register_configs() -> None:
    """Let the Auto classes of this process make them of folders."""
    AutoConfig.register(NEMOTRON_NAS, NemotronNasConfig, exist_ok=True)
    AutoConfig.register(PrunedConfig.model_type, ServedConfig, exist_ok=True)
    AutoModel.register(ServedConfig, PrunedBase, exist_ok=True)


def refuse_mixers(config: PrunedConfig) -> None:
    """Raise ValueError for a pruned model whose layers carry states, for which the plugin gives vLLM no cache."""
    if FAMILIES[(config.base_config or {})["model_type"]].mixer is not None:
        raise ValueError(
            "some layers have a mixer, and the plugin serves pruned models whose layers have attentions alone; vLLM "
            "itself serves those that stock transformers loads"
        )


def refuse_parallel(config: PrunedConfig, shards: int, stages: int) -> None:
    """Raise ValueError for a model that is not divided among so many processes.

    shards  of tensor parallelism, which divides heads and channels of each layer
    stages  of pipeline parallelism, which divides layers
    """
    if stages > 1:
        raise ValueError("a pruned model is not served with pipeline parallelism, which nobody has tried with one")
    if shards == 1:
        return
    if reason := reason_for_own_code(config):
        raise ValueError(f"tensor parallelism divides whole matrices, and {reason}")
    for number, facts in enumerate(config.per_layer_config):
        if not facts.intermediate_size and "mlp" not in facts.skip:
            raise ValueError(f"tensor parallelism divides whole matrices, and layer {number} has a mixture of experts")
        for name in WIDTHS:
            if getattr(facts, name) % shards:
                size = getattr(facts, name)
                raise ValueError(f"tensor parallelism divides each layer by {shards}, and {name} of {number} is {size}")
