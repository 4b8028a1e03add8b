"""Lets states that wait for a later layer lie in files, so that all of them may take more than the memory.

Between two layers the states of all tokens wait, N T D numbers; a greedy search has them of several candidates, what is
fitted to the dense model has them of both models, gradients need them in front of each layer. In a file they are pages
that the system writes out where memory is short, and reads again when the next layer wants them.

The files have no name, as those of methods.model.layer_store: their room is free when nobody holds the states any more,
or when the process has ended, however that came about. So what is in one is of this process and whole.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from methods.errors import NoRoom, first_line
from methods.model.layer_store import in_a_file


def put_to_wait(x: Tensor, folder: Path) -> Tensor:
    """Return states with the same values that lie in a file of the folder; those on a GPU are left there.

    Raises NoRoom where the folder takes no more.
    """
    if x.device.type != "cpu" or not x.numel():
        return x
    try:
        (found,) = in_a_file(folder, "states-", [x.detach()])
    except (OSError, RuntimeError) as error:  # torch has its own for a file that it cannot map
        raise NoRoom(f"the folder of --offload takes no more states: {first_line(error)}; name a larger one") from error
    return found
