"""Pruned models on disk: saved, loaded again, checked.

    from methods import checkpoint
    model = checkpoint.load("laco-30")

save_load            a `Decoder` as a folder, and back
pruned_config        the configuration of a model whose layers differ, and the stock classes that are cut to it
transformers_compat  which shapes a stock transformers loads
stock                the stock class of a configuration, and the one width that it takes
weight_files         safetensors, sharded and checked
model_card           the README of a saved model
verify               whether a folder is what it says
"""

from __future__ import annotations

from methods.checkpoint.save_load import complete, is_checkpoint, load, read_manifest, save
from methods.errors import CheckpointError

__all__ = ["CheckpointError", "complete", "is_checkpoint", "load", "read_manifest", "save"]
