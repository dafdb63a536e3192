"""The losses of GALIP (Tao et al., CVPR 2023, eq. 1 and 2), as pure functions of logits, features and embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def hinge_real(logits: Tensor) -> Tensor:
    """Logits (B,) of real, matching pairs -> scalar: mean of max(0, 1 - logit)."""
    return F.relu(1 - logits).mean()


def hinge_fake(logits: Tensor) -> Tensor:
    """Logits (B,) of generated or mismatched pairs -> scalar: mean of max(0, 1 + logit)."""
    return F.relu(1 + logits).mean()


def matching_losses(real: Tensor, mismatch: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (B,) of real pairs, of real pictures with another's caption, of generated ones -> loss, what to report.

    `accuracy_...` is the share of the pairs that the discriminator puts on the right side of 0.
    """
    losses = {"real": hinge_real(real), "mismatch": hinge_fake(mismatch), "fake": hinge_fake(fake)}
    loss = losses["real"] + (losses["mismatch"] + losses["fake"]) / 2
    noted = {"loss_d": loss}
    for (name, part), logits, sign in zip(losses.items(), (real, mismatch, fake), (1, -1, -1), strict=True):
        right = (sign * logits > 0).float().mean()
        noted |= {f"loss_{name}": part, f"logit_{name}": logits.mean(), f"accuracy_{name}": right}
    return loss, noted


def matching_aware_penalty(
    logit_of: Callable[[Tensor, Tensor], Tensor], features: Tensor, sentence: Tensor, weight: float, power: float
) -> Tensor:
    """MA-GP (DF-GAN, CVPR 2022, eq. 2): `gradient_penalty` of `logit_of(features, sentence)`, real, matching pairs.

    Computed in fp32 whatever the precision around it: in fp16 the power of six ends at a norm of six (notebook 10).
    """
    features, sentence = as_leaf(features), as_leaf(sentence)
    with torch.autocast(device_type=features.device.type, enabled=False):
        return gradient_penalty(logit_of(features, sentence), features, sentence, weight, power)


def as_leaf(tensor: Tensor) -> Tensor:
    """A copy in fp32 outside the graph, towards which gradients can be asked for."""
    return tensor.detach().float().requires_grad_()


def gradient_penalty(logits: Tensor, features: Tensor, sentence: Tensor, weight: float, power: float) -> Tensor:
    """weight * mean(|d logit / d (features, sentence)| ^ power), of logits (B,) in the graph of both -> scalar."""
    gradients = torch.autograd.grad(logits.sum(), (features, sentence), create_graph=True)
    flat = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)  # (B, taps*W*g*g + E)
    return weight * flat.norm(dim=1).pow(power).mean()


def beyond_range(images: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) -> how far their values lie beyond [-1, 1], a scalar: mean of max(0, |value| - 1).

    Nothing else bounds them: CLIP's first layer norm hides their size from the other losses (notebook 10).
    """
    return F.relu(images.abs() - 1).float().mean()


def clip_similarity(image: Tensor, sentence: Tensor) -> Tensor:
    """Embeddings (B, E), (B, E) -> mean cosine, a scalar in [-1, 1]."""
    return F.cosine_similarity(image, sentence).mean()
