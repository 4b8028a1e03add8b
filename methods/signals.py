"""Passes on `methods.model.activations` and `methods.model.gradients` under an earlier name, for plugins."""

from methods.model.activations import *  # noqa: F403
from methods.model.gradients import *  # noqa: F403
