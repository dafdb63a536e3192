"""The checkers of notebooks 09 and 11 by their old name."""

from .checks import NOT_TRIED, CheckFailed, check_energy_share, check_mixed

__all__ = ["NOT_TRIED", "CheckFailed", "check_energy_share", "check_mixed"]
