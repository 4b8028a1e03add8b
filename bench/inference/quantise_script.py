"""Quantises the linear layers of a folder by llmcompressor; run by the Python that has it.

    python -m bench.inference.quantise_script FOLDER TO SCHEME
    python -m bench.inference.quantise_script

SCHEME is a key of `SCHEMES`. Without words it prints llmcompressor's version. The embeddings and the head stay as they
are. Weights are rounded to the nearest number, and no text is read.
"""

from __future__ import annotations

import sys
from typing import Any

GROUP = 64  # input channels of a scale: 128, which is usual, does not divide the width of small models
SCHEMES: dict[str, dict[str, Any]] = {
    "w8a8": {  # a scale for each output channel, and one for each token of the input, when it comes
        "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        "input_activations": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
    },
    "w4a16": {"weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}},
}


def quantise(folder: str, to: str, scheme: str) -> None:
    """Write the model of a folder, its linear layers quantised, to the new folder `to`."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head]
    groups = {"linear": SCHEMES[scheme] | {"targets": ["Linear"]}}
    oneshot(model=model, recipe=QuantizationModifier(config_groups=groups, ignore=names))
    model.save_pretrained(to, save_compressed=True)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)


if __name__ == "__main__":
    if sys.argv[1:]:
        quantise(*sys.argv[1:])
    else:
        import llmcompressor

        print(llmcompressor.__version__)
