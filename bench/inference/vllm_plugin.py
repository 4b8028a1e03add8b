"""Makes vLLM serve pruned models: `register` is called in each of its processes, by the group vllm.general_plugins.

prunebench     folders of `export --format hf` that transformers alone does not load (bench.inference.vllm_model)
nemotron-nas   folders of `export --format nemotron-nas`, which vLLM's own DeciLMForCausalLM computes

The Python that has vLLM takes this package without the others that it asks for, and accelerate.
"""

from __future__ import annotations

import warnings


def register() -> None:
    """Make pruned models known to vLLM. It may be called again.

    It warns where it cannot, and never raises, since it is called before vLLM starts with any model.
    """
    try:
        from bench.inference.vllm_config import register_configs

        register_configs()
        from vllm import ModelRegistry

        from bench.inference.vllm_model import PrunedForCausalLM

        # the class itself: vLLM looks at one that is named by a text in a process of its own, at every start
        ModelRegistry.register_model(PrunedForCausalLM.__name__, PrunedForCausalLM)
    except Exception as error:
        warnings.warn(f"prunebench does not make pruned models known to vLLM: {error}", stacklevel=2)
