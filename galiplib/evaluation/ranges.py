"""The one place where pictures change their range of values on the way to a measure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class EvaluationError(ValueError):
    """Something that can't be measured; the message says what and where."""


def to_range(images: Tensor, wanted: str = "signed", numbers: Sequence[int] | None = None) -> Tensor:
    """Images (B, 3, H, W), float and about [-1, 1], in the range that a metric wants.

    Args:
        wanted: "signed": float in [-1, 1] (judge, CLIP bridge); "unit": float in [0, 1] (torchmetrics with
            `normalize=True`, pyiqa); "byte": uint8 in 0..255, rounded (torchmetrics otherwise).
        numbers: of the pictures, for the message; by default from 0 on.

    What lies outside [-1, 1] is cut off, as when a picture is shown or saved: the generator has no tanh.

    Raises:
        EvaluationError: for a picture with a value that is not finite, by its number.
        ValueError: for an unknown range.
    """
    bad = (~images.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if bad:
        number = bad[0] if numbers is None else numbers[bad[0]]
        raise EvaluationError(f"picture {number} is not finite ({len(bad)} of {len(images)} aren't)")
    signed = images.float().clamp(-1, 1)
    match wanted:
        case "signed":
            return signed
        case "unit":
            return signed * 0.5 + 0.5
        case "byte":
            return (signed * 127.5 + 127.5).round().to(torch.uint8)
    raise ValueError(f"unknown range {wanted!r}: one of signed, unit, byte")
