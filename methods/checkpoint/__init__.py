"""Pruned models on disk: saved, loaded again, checked.

    from methods import checkpoint
    model = checkpoint.load("laco-30")

save_load            a `Decoder` as a folder, and back; checks of such a folder
pruned_config        the configuration of a model whose layers differ, and of stock classes that have one width
heterogeneous        the same in stock configurations: transformers' `per_layer_config`
transformers_compat  which models stock transformers can hold, and zeros that make more of them so
weight_files         safetensors, sharded and checked
model_card           the README of a saved model
"""

from __future__ import annotations

from methods.checkpoint.save_load import complete, is_checkpoint, load, read_manifest, save
from methods.errors import CheckpointError

__all__ = ["CheckpointError", "complete", "is_checkpoint", "load", "read_manifest", "save"]
