"""The figures of notebooks 09 and 11 by their old name."""

from .plotting import picture_table
from .plotting import pipeline as structure

__all__ = ["picture_table", "structure"]
