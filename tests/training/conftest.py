"""A tiny task that trains in a blink; its name reaches runs as `tiny_task:...`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "fixtures"))
