"""Checkers for the exercises of the course.

Each takes the learner's function, tries it on small inputs and returns a line that begins with "passed", or
raises `CheckFailed` with a hint at what is probably wrong. A function that returns None has not been written
yet: `NOT_TRIED` comes back, so that a notebook runs through untouched.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from torch import Tensor

from ..data import minibirds

Shape = tuple[int, ...]
NOT_TRIED = "not tried yet (the function returns None)"


class CheckFailed(AssertionError):
    """An exercise's solution is not right yet; the message says what is probably wrong."""


def _call(fn: Callable | None, *args, hint: str = "") -> Any:
    """The function's value on clones of the arguments; None if it is not written yet."""
    if fn is None:
        return None
    given = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
    try:
        value = fn(*given)
    except NotImplementedError:
        return None
    except Exception as error:
        what = f"{type(error).__name__}: {error}".rstrip(".")
        raise CheckFailed(f"your function raised {what}.{hint and ' ' + hint}") from error
    for before, after in zip(args, given, strict=True):
        if isinstance(before, Tensor) and not torch.equal(before, after):
            raise CheckFailed("your function changes its input in place: compute a new tensor instead")
    return value


def _check_tensor(value: Any, shape: Shape, hints: Mapping[Shape, str] | None = None) -> None:
    """Raise CheckFailed unless `value` is a finite tensor of this shape; `hints` explain wrong shapes."""
    wanted = "a scalar tensor, shape ()" if shape == () else f"a tensor of shape {shape}"
    if not isinstance(value, Tensor):
        raise CheckFailed(f"expected {wanted}, got {type(value).__name__}{_number_hint(value)}")
    if value.shape != shape:
        hint = (hints or {}).get(tuple(value.shape), "")
        raise CheckFailed(f"expected {wanted}, got shape {tuple(value.shape)}{hint and ': ' + hint}")
    if not value.isfinite().all():
        raise CheckFailed("the result holds NaN or infinity")


def _number_hint(value: Any) -> str:
    return ": without .item(), so that gradients can flow" if isinstance(value, int | float) else ""


def _compare(value: Tensor, right: Tensor, mistakes: Mapping[str, Tensor | float]) -> None:
    """Raise CheckFailed unless `value` is `right`, naming the mistake whose result it is."""
    if torch.allclose(value, right, rtol=1e-3, atol=1e-4):
        return
    for hint, wrong in mistakes.items():
        wrong = torch.as_tensor(wrong, dtype=value.dtype)
        if wrong.shape == value.shape and torch.allclose(value, wrong, rtol=1e-3, atol=1e-4):
            raise CheckFailed(hint)
    if right.ndim == 0:
        raise CheckFailed(f"the value is {float(value):.4f}, expected {float(right):.4f}")
    worst = float((value - right).abs().max())
    raise CheckFailed(f"the shape is right, the values are off by up to {worst:.3f}")


def _check_gradient(value: Tensor) -> None:
    if not value.requires_grad:
        raise CheckFailed("no gradient flows back from the result: leave out .item() and .detach()")


# ---------------------------------------------------------------- the exercises


def check_affine(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """`fn(x (B, C, H, W), gamma (B, C), beta (B, C)) -> (B, C, H, W)`: gamma * x + beta by channel."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, generator=draw)
    gamma, beta = torch.randn(2, 2, 3, generator=draw)
    wide_gamma, wide_beta = gamma[:, :, None, None], beta[:, :, None, None]  # (B, C, 1, 1)
    hint = "gamma and beta are (B, C): give them two more axes, (B, C, 1, 1), to broadcast over H and W"
    value = _call(fn, x, gamma, beta, hint=hint)
    if value is None:
        return NOT_TRIED
    _check_tensor(value, (2, 3, 4, 5), {(2, 3): hint})
    mistakes = {
        "beta is missing: the result is gamma * x": wide_gamma * x,
        "gamma is missing: the result is x + beta": x + wide_beta,
        "gamma and beta are swapped": wide_beta * x + wide_gamma,
        "beta is scaled too: the result is gamma * (x + beta)": wide_gamma * (x + wide_beta),
        "the scale is gamma, not 1 + gamma": (1 + wide_gamma) * x + wide_beta,
        "beta is subtracted": wide_gamma * x - wide_beta,
        "the result is x itself": x,
        "every picture got the first one's gamma and beta": wide_gamma[:1] * x + wide_beta[:1],
    }
    _compare(value, wide_gamma * x + wide_beta, mistakes)
    return "passed: every channel of every picture has its own scale and shift"


def check_hinge(fn_real: Callable[[Tensor], Tensor], fn_fake: Callable[[Tensor], Tensor]) -> str:
    """`fn_real(logits (B,)) -> scalar`, the mean of max(0, 1 - logit); `fn_fake`, of max(0, 1 + logit)."""
    logits = torch.tensor([-2.0, -0.5, 0.25, 0.8, 3.0, 1.7])
    written = 0
    for name, fn, sign in (("the real loss", fn_real, -1), ("the fake loss", fn_fake, 1)):
        signed = sign * logits
        value = _call(fn, logits.clone().requires_grad_())
        if value is None:
            continue
        written += 1
        try:
            _check_tensor(value, (), {tuple(logits.shape): "take the mean over the batch"})
            mistakes = {
                "the sign of the logit is turned round": F.relu(1 - signed).mean(),
                "take the mean over the batch, not the sum": F.relu(1 + signed).sum(),
                "the max(0, ...) is missing: beyond the margin a pair costs nothing": (1 + signed).mean(),
                "the margin of 1 is missing": F.relu(signed).mean(),
                "the whole has the wrong sign": -F.relu(1 + signed).mean(),
                "the max(0, ...) belongs inside the mean, around each logit": F.relu((1 + signed).mean()),
                "that is the logistic loss (softplus); the hinge is max(0, ...)": F.softplus(signed).mean(),
                "that is the squared hinge: leave out the square": F.relu(1 + signed).square().mean(),
            }
            _compare(value, F.relu(1 + signed).mean(), mistakes)
            _check_gradient(value)
        except CheckFailed as error:
            raise CheckFailed(f"{name}: {error}") from None
    return "passed: logits beyond the margin cost nothing, all others linearly" if written == 2 else NOT_TRIED


def check_mismatch(fn: Callable[[Tensor], Tensor]) -> str:
    """`fn(sentence (B, E)) -> (B, E)`: the same sentences, none in its own place (rolled by one, say)."""
    for size in (2, 3, 4, 7):
        sentence = torch.randn(size, 5, generator=torch.Generator().manual_seed(size))
        for _ in range(6):  # a random order is wrong only now and then
            value = _call(fn, sentence)
            if value is None:
                return NOT_TRIED
            _check_tensor(value, (size, 5), {(5, size): "the result is transposed"})
            same = (value[:, None] == sentence[None]).all(dim=2)  # (B, B): row i of the result is sentence j
            if torch.equal(value, sentence):
                raise CheckFailed("the sentences are still in their places: every pair still matches")
            if not same.any(dim=1).all():
                if torch.equal(value.sort(dim=1).values, sentence.sort(dim=1).values):
                    raise CheckFailed("the numbers inside each sentence moved: move whole rows (dimension 0)")
                raise CheckFailed("a row of the result is no sentence: move whole rows (dimension 0)")
            if not same.any(dim=0).all():
                raise CheckFailed("some sentence was lost: each must appear once in the result")
            kept = same.diagonal().nonzero().flatten().tolist()
            if kept:
                raise CheckFailed(
                    f"with {size} sentences, row {kept[0]} stayed in its place: a picture with its own "
                    "caption would count as a mismatch. Roll by one, rather than shuffle or flip"
                )
    return "passed: every picture meets another picture's sentence"


def check_contrastive(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """`fn(image (B, E), text (B, E), scale) -> scalar`: CLIP's symmetric cross-entropy over a batch."""
    draw = torch.Generator().manual_seed(0)
    image = (2 * torch.randn(5, 8, generator=draw) + 0.5).requires_grad_()
    text = 3 * torch.randn(5, 8, generator=draw) + 0.5
    scale = torch.tensor(4.0)
    value = _call(fn, image, text, scale, hint="image and text are (B, E), so that image @ text.T is (B, B)")
    if value is None:
        return NOT_TRIED
    logits_hint = "these are the logits: the loss is their cross-entropy with the diagonal as the target"
    _check_tensor(value, (), {(5, 5): logits_hint, (5,): "take the mean over the batch"})

    def loss(x: Tensor, y: Tensor, factor: Tensor | float) -> tuple[Tensor, Tensor]:
        logits = factor * x @ y.T  # (B, B)
        target = torch.arange(len(x))
        return F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)

    unit_image, unit_text = F.normalize(image.detach(), dim=1), F.normalize(text, dim=1)
    rows, columns = loss(unit_image, unit_text, scale)
    mistakes = {
        "the embeddings are not normalised: divide each row by its length": sum(loss(image, text, scale)) / 2,
        "only the images are normalised: the texts too": sum(loss(unit_image, text, scale)) / 2,
        "only the texts are normalised: the images too": sum(loss(image, unit_text, scale)) / 2,
        "only one direction, picture to text: the cross-entropy of logits.T is missing": rows,
        "only one direction, text to picture: the cross-entropy of logits is missing": columns,
        "only half of one direction: add the other one": rows / 2,
        "both directions are summed: take their mean": rows + columns,
        "the scale is missing": sum(loss(unit_image, unit_text, 1.0)) / 2,
        "the logits are divided by the scale: multiply (it is the temperature's inverse)": (
            sum(loss(unit_image, unit_text, 1 / scale)) / 2
        ),
        "the scale comes ready: leave out the exp": sum(loss(unit_image, unit_text, scale.exp())) / 2,
        "normalised along the batch: each row (dim=1) is to get length 1": (
            sum(loss(F.normalize(image, dim=0), F.normalize(text, dim=0), scale)) / 2
        ),
    }
    _compare(value, (rows + columns) / 2, mistakes)
    _check_gradient(value)
    return "passed: cosines, scaled, cross-entropy in both directions"


def check_frechet(fn: Callable[..., float]) -> str:
    """`fn(mu1 (D,), cov1 (D, D), mu2, cov2) -> float`: |mu1 - mu2|^2 + Tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)).

    The arguments are numpy arrays; for a function that can't take those, torch tensors.
    """
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 4))
    mu1, mu2 = rng.normal(size=(2, 4))
    cov1, cov2 = a @ a.T + 0.1 * np.eye(4), b @ b.T + 0.1 * np.eye(4)  # they don't commute

    def call(*arrays: np.ndarray) -> Any:
        try:
            return _call(fn, *(array.copy() for array in arrays))
        except CheckFailed as error:
            if not isinstance(error.__cause__, TypeError | AttributeError):
                raise
        return _call(fn, *(torch.from_numpy(array.copy()) for array in arrays))

    value = call(mu1, cov1, mu2, cov2)
    if value is None:
        return NOT_TRIED
    value = _real_number(value)
    squared = float(((mu1 - mu2) ** 2).sum())
    traces = float(np.trace(cov1) + np.trace(cov2))
    cross = float(np.trace(sqrtm(cov1 @ cov2)).real)
    right = squared + traces - 2 * cross
    with np.errstate(invalid="ignore"):
        elementwise = float(np.trace(np.sqrt(cov1 @ cov2)))
        product = float(np.trace(np.sqrt(cov1 * cov2)))
    mistakes = {
        "the means are missing: add |mu1 - mu2|^2": right - squared,
        "the covariances are missing: only the means are compared": squared,
        "the square root's term is missing: - 2 Tr((cov1 cov2)^(1/2))": squared + traces,
        "the traces of cov1 and cov2 are missing": squared - 2 * cross,
        "the factor 2 before the square root is missing": squared + traces - cross,
        "the square root's term is added: subtract it": squared + traces + 2 * cross,
        "the square root is missing: cov1 @ cov2 itself was subtracted": (
            squared + traces - 2 * float(np.trace(cov1 @ cov2))
        ),
        "the square root is taken number by number: it must be the matrix's (scipy.linalg.sqrtm)": (
            squared + traces - 2 * elementwise
        ),
        "cov1 * cov2 multiplies number by number: use cov1 @ cov2": squared + traces - 2 * product,
        "the roots are taken before the product: it is the root of cov1 @ cov2": (
            squared + traces - 2 * float(np.trace(sqrtm(cov1) @ sqrtm(cov2)).real)
        ),
        "the distance of the means must be squared": right - squared + math.sqrt(squared),
        "a square root too much: the squared distance is wanted": math.sqrt(right),
        "the mean of the squared differences of the means: take their sum": right - squared + squared / 4,
    }
    number = torch.tensor(value, dtype=torch.float64)
    _compare(number, torch.tensor(right, dtype=torch.float64), mistakes)
    same = _real_number(call(mu1, cov1, mu1, cov1))
    if abs(same) > 1e-3:
        raise CheckFailed(f"a distribution's distance to itself is 0, not {same:.4f}")
    return "passed: means and covariances both count"


def _real_number(value: Any) -> float:
    array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.size != 1:
        raise CheckFailed(f"expected one number, got shape {array.shape}: is the trace (np.trace) missing?")
    if np.iscomplexobj(array):
        raise CheckFailed("the result is complex: sqrtm leaves a tiny imaginary part by rounding, take .real")
    if array.dtype.kind not in "fiu":
        raise CheckFailed(f"expected one number, got {type(value).__name__}")
    if not np.isfinite(array).all():
        raise CheckFailed("the result is NaN or infinite: the root must be the matrix's (scipy.linalg.sqrtm)")
    return float(array.item())


_CAPTIONS = {  # each looks at one thing that is easily missed
    "a red bird with black wings": {"body": "red", "wing": "black"},
    "this is a bird": {},
    "a bird that has a green body": {"body": "green"},
    "this bird has purple wings and a white belly": {"wing": "purple", "belly": "white"},
    "a bird with a pink breast": {"belly": "pink"},
    "this bird has a short red beak and blue wings": {"wing": "blue"},
    "a small orange bird in the snow": {"body": "orange"},
    "a bird with yellow wings, a long black bill and an orange body": {"wing": "yellow", "body": "orange"},
}


def check_caption_asks(fn: Callable[[str], dict[str, str]]) -> str:
    """`fn(caption) -> {part: colour}` for those of body, wing and belly whose colour the caption names.

    "a red bird with black wings" -> {"body": "red", "wing": "black"}; a beak's colour is not asked for.
    """
    cases = dict(_CAPTIONS)
    rng = random.Random(0)
    for seed in range(20):
        bird = minibirds.random_bird(rng)
        for text in minibirds.captions(bird, seed):
            named = minibirds.asked(text)
            cases[text] = {part: getattr(bird, part) for part in ("body", "wing", "belly") if part in named}
    for text, right in cases.items():
        value = _call(fn, text)
        if value is None:
            return NOT_TRIED
        _check_answer(text, value, right)
    return f"passed: {len(cases)} captions read right"


def _check_answer(text: str, value: Any, right: dict[str, str]) -> None:
    said = f"{text!r}: "
    if not isinstance(value, Mapping):
        raise CheckFailed(f"{said}expected a dict such as {right}, got {type(value).__name__}")
    for part, colour in value.items():
        if part not in ("body", "wing", "belly"):
            hint = ' (the key is "wing", without s)' if part == "wings" else ' (a breast counts as "belly")'
            hint = hint if part in ("wings", "breast") else ""
            raise CheckFailed(f'{said}unknown key {part!r}{hint}: the keys are "body", "wing" and "belly"')
        if part not in right:
            beak = f"{colour} beak" in text or f"{colour} bill" in text
            hint = ": that is the beak's colour" if beak else ": leave out what the caption does not name"
            raise CheckFailed(f"{said}it names no colour of the {part}, you found {colour!r}{hint}")
        if colour not in minibirds.COLOURS:
            raise CheckFailed(f"{said}{part}: expected the colour's name {right[part]!r}, got {colour!r}")
        if colour != right[part]:
            raise CheckFailed(f"{said}the {part} is {right[part]}, you found {colour}")
    for part, colour in right.items():
        if part not in value:
            hint = {"body": f' ("{colour} bird" and "{colour} body" both name it)'}.get(part, "")
            if f"{colour} breast" in text:
                hint = f' ("{colour} breast" names it)'
            raise CheckFailed(f"{said}the {part} is {colour}, you found nothing{hint}")


_BOXES = (  # box x, y, w, h and picture's width, height; divisible, so that all ways of rounding agree
    ((100, 60, 40, 20), (300, 200)),
    ((60, 100, 20, 40), (300, 200)),
    ((4, 8, 40, 24), (300, 200)),
    ((240, 150, 56, 48), (300, 200)),
    ((20, 240, 40, 40), (120, 300)),
)


def check_box_crop(fn: Callable[[tuple, tuple], Any]) -> str:
    """`fn(box (x, y, w, h), size (width, height)) -> (left, top, right, bottom)`: what is cut out around a box.

    A square of 1.5 times the longer side around the box's centre, cut off where the picture ends.
    """
    for box, size in _BOXES:
        value = _call(fn, box, size)
        if value is None:
            return NOT_TRIED
        said = f"box {box} in a picture of {size[0]} x {size[1]}: "
        try:
            found = np.array([float(number) for number in value])
        except (TypeError, ValueError):
            found = np.zeros(0)
        if found.shape != (4,) or not np.isfinite(found).all():
            raise CheckFailed(f"{said}expected four numbers, (left, top, right, bottom), got {value!r}")
        x, y, w, h = box
        centre, reach = np.array([x + w / 2, y + h / 2]), 0.75 * max(w, h)

        def clipped(middle: Any, half: Any, limit: tuple = size) -> np.ndarray:
            return np.concatenate([np.maximum(middle - half, 0), np.minimum(middle + half, limit)])

        right = clipped(centre, reach)
        if np.abs(found - right).max() <= 1:  # a pixel more or less is a matter of rounding
            continue
        mistakes = {
            "that is the box itself: the crop is 1.5 times as large": clipped(centre, np.array([w, h]) / 2),
            "that is a rectangle: both sides get 1.5 times the longer one": clipped(centre, 0.75 * np.array([w, h])),
            "1.5 times the shorter side: take the longer one, or the bird is cut": clipped(centre, 0.75 * min(w, h)),
            "1.5 times to each side of the centre makes three times the box: half of it": clipped(centre, 2 * reach),
            "the factor 1.5 is missing": clipped(centre, max(w, h) / 2),
            "x, y is the box's corner: the centre is x + w / 2, y + h / 2": clipped(np.array([x, y]), reach),
            "the last two are right and bottom, not width and height": np.array([*right[:2], *(right[2:] - right[:2])]),
            "it reaches out of the picture: left and top are at least 0, right at most the width, bottom the height": (
                np.concatenate([centre - reach, centre + reach])
            ),
            "width and height of the picture are swapped": clipped(centre, reach, size[::-1]),
        }
        hint = next((hint for hint, wrong in mistakes.items() if np.abs(found - wrong).max() <= 1), None)
        expected, got = (", ".join(f"{number:g}" for number in corners) for corners in (right, found))
        raise CheckFailed(said + (hint or f"expected ({expected}), got ({got})"))
    return f"passed: {len(_BOXES)} boxes, two of them at the border"


def check_overflow_norm(fn: Callable[[float, float, float], float]) -> str:
    """`fn(largest, weight, power) -> float`: the norm at which weight * norm ** power reaches `largest`."""
    for largest, weight, power in ((65504.0, 2.0, 6.0), (65504.0, 2.0 * 16384, 6.0), (240.0, 0.3, 2.0)):
        value = _call(fn, largest, weight, power)
        if value is None:
            return NOT_TRIED
        found = _real_number(value)
        right = (largest / weight) ** (1 / power)
        mistakes = {
            "the weight is missing: it makes the room smaller": largest ** (1 / power),
            "the weight stands outside the power: divide by it first, then take the root": (
                largest ** (1 / power) / weight
            ),
            "multiplied by the weight: divide by it": (largest * weight) ** (1 / power),
            "the power is missing: take the root of largest / weight": largest / weight,
            "that is the power; its inverse, the root, is asked for: ** (1 / power)": (largest / weight) ** power,
            "divided by the power: the root is ** (1 / power)": largest / weight / power,
            "the sign of the power is turned round": (largest / weight) ** (-1 / power),
            "that is the penalty at this norm; the norm itself is asked for": largest,
            "that is the logarithm of the norm: take exp": math.log(right),
        }
        said = f"largest {largest:g}, weight {weight:g}, power {power:g}: "
        if not math.isclose(found, right, rel_tol=1e-3):
            near = (hint for hint, wrong in mistakes.items() if math.isclose(found, wrong, rel_tol=1e-3))
            raise CheckFailed(said + next(near, f"expected {right:.4f}, got {found:.4f}"))
    return "passed: fp16 ends at a norm of 5.66, behind a loss scale of 16,384 at 1.12"


def check_channel_shuffle(fn: Callable[[Tensor], Tensor]) -> str:
    """`fn(x (B, 2 * n, H, W)) -> (B, 2 * n, H, W)`: channel i of the first half beside channel i of the second."""
    for half in (2, 3):
        x = torch.arange(2.0 * 2 * half * 2).reshape(2, 2 * half, 1, 2)
        value = _call(fn, x)
        if value is None:
            return NOT_TRIED
        _check_tensor(value, (2, 2 * half, 1, 2), {(2, half, 2, 1, 2): "flatten the two axes of the channels into one"})
        right = torch.stack([x[:, :half], x[:, half:]], dim=2).flatten(1, 2)
        mistakes = {
            "nothing has moved: the axes of half and place have to change places before they are flattened": x,
            "neighbours were put apart; the other way round, the halves belong side by side": (
                x.unflatten(1, (half, 2)).transpose(1, 2).flatten(1, 2)
            ),
            "the halves have changed places, but are not mixed": x.roll(half, 1),
            "the second half comes first in every pair": torch.stack([x[:, half:], x[:, :half]], dim=2).flatten(1, 2),
        }
        _compare(value, right, {hint: wrong for hint, wrong in mistakes.items() if not torch.equal(wrong, right)})
    return "passed: 0 n 1 n+1 2 n+2 ..."
