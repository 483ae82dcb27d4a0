"""How the inputs of a quantised layer are computed with, in a module that imports nothing."""

from __future__ import annotations

from typing import Literal

Activations = Literal["int8", "float"]
