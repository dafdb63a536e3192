"""How a generator that is given a picture treats it: what it keeps, and whether it follows another caption.

"This picture, but with that caption": made pictures are held against the given one, in pixels and in CLIP's embedding,
and against the caption. Each figure has its control: the same with a picture that was not given. On mini birds, whose
truth is known, the judge counts the parts that the caption names and those it leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip.bridge import ClipBridge
from ..data.batches import Source
from ..images import to_images, to_range
from ..systems.picture_input import PictureGenerator
from .judge import COLUMNS, Judge, asked_of
from .protocol import embed_captions, evaluating, noise_of_pictures

CONTROL = 7  # rows further on: the picture that was not given


@dataclass(frozen=True)
class Edits:
    """Pictures made from a given picture and the caption of another one; entry i of each belongs together."""

    made: Tensor  # (N, 3, H, W) in [-1, 1]
    given: Tensor  # likewise
    captions: list[str]
    truth: Tensor | None  # of mini birds the given pictures' class indices, (N, 4) in the order of `judge.JUDGED`


def make_edits(
    generator: PictureGenerator, bridge: ClipBridge, source: Source, count: int = 200, seed: int = 0, own: bool = False
) -> Edits:
    """Give the generator `count` pictures of a held-out split, each with the next picture's caption (or its `own`).

    Raises ValueError for more pictures than the split has, EvaluationError for one that is not finite.
    """
    if count > len(source):
        raise ValueError(f"{count} pictures are asked for, the split has {len(source)}")
    pixels, rows = source.pixels(np.arange(count))
    given = to_images(pixels)
    texts = [source.captions[row] for row in (rows if own else np.roll(rows, -1))]
    captions = [text[i % len(text)] for i, text in enumerate(texts)]
    labels = getattr(source, "labels", None)
    truth = None if labels is None else torch.from_numpy(labels[rows][:, COLUMNS])
    device, made = bridge.pixel_mean.device, []
    with evaluating(generator):
        for start in range(0, count, 100):
            part = slice(start, start + 100)
            sentence = embed_captions(bridge, captions[part])
            noise = noise_of_pictures(range(start, start + len(sentence)), generator.noise_dim, seed)
            painted = generator(noise.to(device), sentence, given[part].to(device))
            made.append(to_range(painted, numbers=range(start, start + len(sentence))).cpu())
    return Edits(torch.cat(made), given, captions, truth)


@torch.inference_mode()
def measure_edits(edits: Edits, bridge: ClipBridge, judge: Judge | None = None) -> dict[str, float]:
    """What is kept of the given pictures, and how the captions are followed.

    Returns:
        rmse, clip_image: of pixels ([-1, 1]) the root mean square difference to the given picture, of CLIP's embeddings
            the mean cosine; ..._control: with another one. clip_text: the mean cosine with the caption.
        With a judge, of attributes that the caption names, and the given picture has otherwise, the share in which the
            made one `follows` it; of those left open in which it `keeps` the given one's (keeps_control: another's).

    Raises:
        ValueError: for a judge where the truth about the given pictures is not known.
    """
    device, made, given = bridge.pixel_mean.device, edits.made, edits.given
    parts = torch.cat([made, given]).split(100)
    own, kept = torch.cat([bridge.encode_image(part.to(device))[1].float() for part in parts]).chunk(2)  # (N, E) each
    result: dict[str, float] = {}
    for end, shift in (("", 0), ("_control", CONTROL)):
        result[f"rmse{end}"] = F.mse_loss(made, given.roll(shift, 0)).sqrt().item()
        result[f"clip_image{end}"] = F.cosine_similarity(own, kept.roll(shift, 0)).mean().item()
    result["clip_text"] = F.cosine_similarity(own, embed_captions(bridge, edits.captions)).mean().item()
    if judge is None:
        return result
    if edits.truth is None:
        raise ValueError("the judge needs mini birds: of other pictures the true attributes are not known")
    seen, wanted = judge.answers(judge.features(made)).cpu(), asked_of(edits.captions)  # (N, 4) each
    changed, is_open = (wanted >= 0) & (wanted != edits.truth), wanted < 0
    return result | {
        "follows": (seen == wanted)[changed].float().mean().item(),
        "keeps": (seen == edits.truth)[is_open].float().mean().item(),
        "keeps_control": (seen == edits.truth.roll(CONTROL, 0))[is_open].float().mean().item(),
    }
