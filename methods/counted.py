"""What a ratio is a share of: of all parameters, as methods take it, or of what a paper counts.

A run may ask for a share of the decoder or of the layers (--ratio-of). Its request is turned into a share of all
parameters before any method sees it, so that all methods of a run have one budget whatever their papers count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from methods.model.decoder import Decoder

Counted = Literal["all", "decoder", "layers"]
COUNTED: tuple[str, ...] = get_args(Counted)
LAYERS, BLOCKS = "layers, by their number", "attentions and MLPs, by their number"
IN_PAPERS = {  # what the ratio of a module's paper is a share of
    "laco": "all parameters",
    "slicegpt": "the residual width",
    "llm_pruner": "the heads and channels of the layers that are not protected",
    "shortgpt": LAYERS,
    "angular": LAYERS,
    "shortened_llama": LAYERS,
    "sleb": LAYERS,
    "blockpruner": BLOCKS,
    "finercut": BLOCKS,
    "llm_drop": BLOCKS,
    "flap": "the decoder",
    "wanda_sp": "the decoder",
    "two_ssp": "the decoder",
    "minitron_width": "nothing: it names widths",
}


def counted(model: Decoder, of: str) -> int:
    """Return how many parameters a ratio counts.

    all      every parameter that is stored
    decoder  all but the embedding, the table of positions and the head: the layers and the final norm
    layers   those of the layers; where all are of one size, a share of them is one of their number
    """
    from methods.model.sizes import layer_parameters, parameters, parameters_without_embeddings

    match of:
        case "all":
            return parameters(model)
        case "decoder":
            return parameters_without_embeddings(model)
        case "layers":
            return sum(map(layer_parameters, model.layers))
    raise ValueError(f"a ratio is a share of {', '.join(COUNTED)}; got {of!r}")


def share_of_all(model: Decoder, ratio: float, of: str) -> float:
    """Return which share of all parameters goes where `ratio` of what is counted goes."""
    return ratio if of == "all" else ratio * counted(model, of) / counted(model, "all")
