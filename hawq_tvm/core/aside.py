"""How names of what is written aside, then renamed, end; they begin with a dot."""

from __future__ import annotations

ASIDE = ".aside"
"""A process that is killed leaves such entries; whoever works on the folder next removes them."""
