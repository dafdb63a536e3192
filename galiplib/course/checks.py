"""Checkers for the exercises of the course.

Each takes the learner's function, tries it on small inputs and returns a line that begins with "passed", or raises
`CheckFailed` with a hint at what is probably wrong. For a function not yet written, which returns None, `NOT_TRIED`
comes back, so that a notebook runs through untouched.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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


def exercise(check: Callable[..., str]) -> Callable[..., str]:
    """Let a checker of what is not written yet (NotImplementedError) return `NOT_TRIED`."""

    @functools.wraps(check)
    def wrapped(*solutions: Callable | None) -> str:
        try:
            return check(*solutions)
        except NotImplementedError:
            return NOT_TRIED

    return wrapped


@contextmanager
def _about(case: str) -> Iterator[None]:
    """Say of a failure which case it is about."""
    try:
        yield
    except CheckFailed as error:
        raise CheckFailed(f"{case}: {error}") from error.__cause__


def _call(fn: Callable | None, *args: Any, hint: str = "") -> Any:
    """The function's value on clones of the arguments. Raises NotImplementedError if there is none."""
    given = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
    try:
        value = None if fn is None else fn(*given)
    except NotImplementedError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}".rstrip(".")
        raise CheckFailed(f"your function raised {what}.{hint and ' ' + hint}") from error
    if value is None:
        raise NotImplementedError
    for before, after in zip(args, given, strict=True):
        if isinstance(before, Tensor) and not torch.equal(before, after):
            raise CheckFailed("your function changes its input in place: compute a new tensor instead")
    return value


def _check_tensor(value: Any, shape: Shape, hints: Mapping[Shape, str] | None = None) -> None:
    """Raise CheckFailed unless `value` is a finite tensor of this shape; `hints` explain wrong shapes."""
    wanted = "a scalar tensor, shape ()" if shape == () else f"a tensor of shape {tuple(shape)}"
    if not isinstance(value, Tensor):
        hint = ": without .item(), so that gradients can flow" if isinstance(value, int | float) else ""
        raise CheckFailed(f"expected {wanted}, got {type(value).__name__}{hint}")
    if value.shape != shape:
        hint = (hints or {}).get(tuple(value.shape), "")
        raise CheckFailed(f"expected {wanted}, got shape {tuple(value.shape)}{hint and ': ' + hint}")
    if not value.isfinite().all():
        raise CheckFailed("the result holds NaN or infinity")


def _compare(
    value: Any, right: Any, mistakes: Mapping[str, Any], hints: Mapping[Shape, str] | None = None,
    gradient: bool = False, near: tuple[float, float] = (1e-3, 1e-4),  # relative, absolute
) -> None:  # fmt: skip
    """Raise CheckFailed unless `value` is `right` (and has a gradient), naming the mistake whose result it is."""
    right = torch.as_tensor(right)
    _check_tensor(value, right.shape, hints)
    for hint, other in {"": right, **mistakes}.items():
        other = torch.as_tensor(other, dtype=value.dtype)
        if other.shape == value.shape and torch.allclose(value, other, *near):
            if not hint and gradient and not value.requires_grad:
                hint = "no gradient flows back from the result: leave out .item() and .detach()"
            if hint:
                raise CheckFailed(hint)
            return
    if right.ndim == 0:
        raise CheckFailed(f"expected {float(right):.4f}, got {float(value):.4f}")
    if right.ndim == 1:
        expected, got = (", ".join(f"{number:g}" for number in row.tolist()) for row in (right, value))
        raise CheckFailed(f"expected ({expected}), got ({got})")
    raise CheckFailed(f"the shape is right, the values are off by up to {float((value - right).abs().max()):.3f}")


def _number(value: Any) -> Tensor:
    """A float, or an array or tensor of one element, as a tensor of shape (), so that it can be compared."""
    array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.size != 1:
        raise CheckFailed(f"expected one number, got shape {array.shape}: is the trace (np.trace) missing?")
    if np.iscomplexobj(array):
        raise CheckFailed("the result is complex: sqrtm leaves a tiny imaginary part by rounding, take .real")
    if array.dtype.kind not in "fiu":
        raise CheckFailed(f"expected one number, got {type(value).__name__}")
    if not np.isfinite(array).all():
        raise CheckFailed("the result is NaN or infinite: the root must be the matrix's (scipy.linalg.sqrtm)")
    return torch.tensor(array.item(), dtype=torch.float64)


# ---------------------------------------------------------------- the exercises


@exercise
def check_affine(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """`fn(x (B, C, H, W), gamma (B, C), beta (B, C)) -> (B, C, H, W)`: gamma * x + beta by channel."""
    draw = torch.Generator().manual_seed(0)
    x, (gamma, beta) = torch.randn(2, 3, 4, 5, generator=draw), torch.randn(2, 2, 3, generator=draw)
    hint = "gamma and beta are (B, C): give them two more axes, (B, C, 1, 1), to broadcast over H and W"
    value = _call(fn, x, gamma, beta, hint=hint)
    gamma, beta = gamma[:, :, None, None], beta[:, :, None, None]  # (B, C, 1, 1)
    mistakes = {
        "beta is missing: the result is gamma * x": gamma * x,
        "gamma is missing: the result is x + beta": x + beta,
        "gamma and beta are swapped": beta * x + gamma,
        "beta is scaled too: the result is gamma * (x + beta)": gamma * (x + beta),
        "the scale is gamma, not 1 + gamma": (1 + gamma) * x + beta,
        "beta is subtracted": gamma * x - beta,
        "the result is x itself": x,
        "every picture got the first one's gamma and beta": gamma[:1] * x + beta[:1],
    }
    _compare(value, gamma * x + beta, mistakes, {(2, 3): hint})
    return "passed: every channel of every picture has its own scale and shift"


@exercise
def check_hinge(fn_real: Callable[[Tensor], Tensor], fn_fake: Callable[[Tensor], Tensor]) -> str:
    """`fn_real(logits (B,)) -> scalar`, the mean of max(0, 1 - logit); `fn_fake`, of max(0, 1 + logit)."""
    logits = torch.tensor([-2.0, -0.5, 0.25, 0.8, 3.0, 1.7])
    written = 0
    for name, fn, signed in (("the real loss", fn_real, -logits), ("the fake loss", fn_fake, logits)):
        with _about(name), suppress(NotImplementedError):  # the other one is looked at all the same
            value = _call(fn, logits.clone().requires_grad_())
            written += 1
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
            _compare(value, F.relu(1 + signed).mean(), mistakes, {(6,): "take the mean over the batch"}, gradient=True)
    return "passed: logits beyond the margin cost nothing, all others linearly" if written == 2 else NOT_TRIED


@exercise
def check_mismatch(fn: Callable[[Tensor], Tensor]) -> str:
    """`fn(sentence (B, E)) -> (B, E)`: the same sentences, none in its own place (rolled by one, say)."""
    for size in (2, 3, 4, 7) * 6:  # a random order is wrong only now and then
        sentence = torch.randn(size, 5, generator=torch.Generator().manual_seed(size))
        value = _call(fn, sentence)
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
        if kept := same.diagonal().nonzero().flatten().tolist():
            raise CheckFailed(
                f"with {size} sentences, row {kept[0]} stayed in its place: a picture with its own "
                "caption would count as a mismatch. Roll by one, rather than shuffle or flip"
            )
    return "passed: every picture meets another picture's sentence"


@exercise
def check_contrastive(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """`fn(image (B, E), text (B, E), scale) -> scalar`: CLIP's symmetric cross-entropy over a batch."""
    draw = torch.Generator().manual_seed(0)
    image = (2 * torch.randn(5, 8, generator=draw) + 0.5).requires_grad_()
    text = 3 * torch.randn(5, 8, generator=draw) + 0.5
    scale = torch.tensor(4.0)
    value = _call(fn, image, text, scale, hint="image and text are (B, E), so that image @ text.T is (B, B)")
    logits = "these are the logits: the loss is their cross-entropy with the diagonal as the target"

    def losses(x: Tensor, y: Tensor, factor: Tensor | float = scale) -> Tensor:
        """The two directions, (2,)."""
        logits, target = factor * x @ y.T, torch.arange(len(x))  # (B, B)
        return torch.stack([F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)])

    i, t = F.normalize(image.detach(), dim=1), F.normalize(text, dim=1)
    along = F.normalize(image, dim=0), F.normalize(text, dim=0)
    rows, columns = losses(i, t)
    mistakes = {
        "the embeddings are not normalised: divide each row by its length": losses(image, text).mean(),
        "only the images are normalised: the texts too": losses(i, text).mean(),
        "only the texts are normalised: the images too": losses(image, t).mean(),
        "only one direction, picture to text: the cross-entropy of logits.T is missing": rows,
        "only one direction, text to picture: the cross-entropy of logits is missing": columns,
        "only half of one direction: add the other one": rows / 2,
        "both directions are summed: take their mean": rows + columns,
        "the scale is missing": losses(i, t, 1.0).mean(),
        "the logits are divided by the scale: multiply (the temperature's inverse)": losses(i, t, 1 / scale).mean(),
        "the scale comes ready: leave out the exp": losses(i, t, scale.exp()).mean(),
        "normalised along the batch: each row (dim=1) is to get length 1": losses(*along).mean(),
    }
    hints: dict[Shape, str] = {(5,): "take the mean over the batch", (5, 5): logits}
    _compare(value, (rows + columns) / 2, mistakes, hints, gradient=True)
    return "passed: cosines, scaled, cross-entropy in both directions"


@exercise
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

    means, traces, whole = ((mu1 - mu2) ** 2).sum(), np.trace(cov1 + cov2), np.trace(cov1 @ cov2)
    cross, apart = np.trace(sqrtm(cov1 @ cov2)).real, np.trace(sqrtm(cov1) @ sqrtm(cov2)).real
    with np.errstate(invalid="ignore"):
        roots, product = (np.trace(np.sqrt(m)) for m in (cov1 @ cov2, cov1 * cov2))
    right = means + traces - 2 * cross
    mistakes = {
        "the means are missing: add |mu1 - mu2|^2": traces - 2 * cross,
        "the covariances are missing: only the means are compared": means,
        "the square root's term is missing: - 2 Tr((cov1 cov2)^(1/2))": means + traces,
        "the traces of cov1 and cov2 are missing": means - 2 * cross,
        "the factor 2 before the square root is missing": means + traces - cross,
        "the square root's term is added: subtract it": means + traces + 2 * cross,
        "the square root is missing: cov1 @ cov2 itself was subtracted": means + traces - 2 * whole,
        "the root is taken number by number: it must be the matrix's (scipy.linalg.sqrtm)": means + traces - 2 * roots,
        "cov1 * cov2 multiplies number by number: use cov1 @ cov2": means + traces - 2 * product,
        "the roots are taken before the product: it is the root of cov1 @ cov2": means + traces - 2 * apart,
        "the distance of the means must be squared": traces - 2 * cross + means**0.5,
        "a square root too much: the squared distance is wanted": right**0.5,
        "the mean of the squared differences of the means: take their sum": traces - 2 * cross + means / 4,
    }
    _compare(_number(call(mu1, cov1, mu2, cov2)), right, mistakes)
    with _about("a distribution's distance to itself"):
        _compare(_number(call(mu1, cov1, mu1, cov1)), 0.0, {})
    return "passed: means and covariances both count"


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


@exercise
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
        with _about(repr(text)):
            _check_answer(text, _call(fn, text), right)
    return f"passed: {len(cases)} captions read right"


def _check_answer(text: str, value: Any, right: dict[str, str]) -> None:
    if not isinstance(value, Mapping):
        raise CheckFailed(f"expected a dict such as {right}, got {type(value).__name__}")
    for part, colour in value.items():
        if part not in ("body", "wing", "belly"):
            hints = {"wings": ' (the key is "wing", without s)', "breast": ' (a breast counts as "belly")'}
            raise CheckFailed(f'unknown key {part!r}{hints.get(part, "")}: the keys are "body", "wing" and "belly"')
        if part not in right:
            beak = f"{colour} beak" in text or f"{colour} bill" in text
            hint = "that is the beak's colour" if beak else "leave out what the caption does not name"
            raise CheckFailed(f"it names no colour of the {part}, you found {colour!r}: {hint}")
        if colour not in minibirds.COLOURS:
            raise CheckFailed(f"{part}: expected the colour's name {right[part]!r}, got {colour!r}")
        if colour != right[part]:
            raise CheckFailed(f"the {part} is {right[part]}, you found {colour}")
    for part in [part for part in right if part not in value]:
        colour = right[part]
        hint = f' ("{colour} bird" and "{colour} body" both name it)' if part == "body" else ""
        hint = f' ("{colour} breast" names it)' if f"{colour} breast" in text else hint
        raise CheckFailed(f"the {part} is {colour}, you found nothing{hint}")


_BOXES = (  # box x, y, w, h and picture's width, height; divisible, so that all ways of rounding agree
    ((100, 60, 40, 20), (300, 200)),
    ((60, 100, 20, 40), (300, 200)),
    ((4, 8, 40, 24), (300, 200)),
    ((240, 150, 56, 48), (300, 200)),
    ((20, 240, 40, 40), (120, 300)),
)


@exercise
def check_box_crop(fn: Callable[[tuple, tuple], Any]) -> str:
    """`fn(box (x, y, w, h), size (width, height)) -> (left, top, right, bottom)`: what is cut out around a box.

    A square of 1.5 times the longer side around the box's centre, cut off where the picture ends.
    """
    for box, size in _BOXES:
        with _about(f"box {box} in a picture of {size[0]} x {size[1]}"):
            _check_corners(_call(fn, box, size), box, size)
    return f"passed: {len(_BOXES)} boxes, two of them at the border"


def _check_corners(value: Any, box: tuple, size: tuple) -> None:
    try:
        found = torch.tensor([float(number) for number in value], dtype=torch.float64)
    except (TypeError, ValueError):
        found = torch.zeros(0)
    if found.shape != (4,) or not found.isfinite().all():
        raise CheckFailed(f"expected four numbers, (left, top, right, bottom), got {value!r}")
    corner, sides = np.array(box[:2]), np.array(box[2:])
    centre, reach = corner + sides / 2, 0.75 * max(sides)

    def clipped(middle: Any, half: Any, limit: tuple = size) -> np.ndarray:
        return np.concatenate([np.maximum(middle - half, 0), np.minimum(middle + half, limit)])

    right, whole = clipped(centre, reach), np.concatenate([centre - reach, centre + reach])
    mistakes = {
        "that is the box itself: the crop is 1.5 times as large": clipped(centre, sides / 2),
        "that is a rectangle: both sides get 1.5 times the longer one": clipped(centre, 0.75 * sides),
        "1.5 times the shorter side: take the longer one, or the bird is cut": clipped(centre, 0.75 * min(sides)),
        "1.5 times to each side of the centre makes three times the box: half of it": clipped(centre, 2 * reach),
        "the factor 1.5 is missing": clipped(centre, max(sides) / 2),
        "x, y is the box's corner: the centre is x + w / 2, y + h / 2": clipped(corner, reach),
        "the last two are right and bottom, not width and height": np.array([*right[:2], *(right[2:] - right[:2])]),
        "it reaches out of the picture: left and top are at least 0, right at most the width, bottom the height": whole,
        "width and height of the picture are swapped": clipped(centre, reach, size[::-1]),
    }
    _compare(found, right, mistakes, near=(0, 1))  # a pixel more or less is a matter of rounding


@exercise
def check_overflow_norm(fn: Callable[[float, float, float], float]) -> str:
    """`fn(largest, weight, power) -> float`: the norm at which weight * norm ** power reaches `largest`."""
    for largest, weight, power in ((65504.0, 2.0, 6.0), (65504.0, 2.0 * 16384, 6.0), (240.0, 0.3, 2.0)):
        right = (largest / weight) ** (1 / power)
        mistakes = {
            "the weight is missing: it makes the room smaller": largest ** (1 / power),
            "the weight stands outside the power: divide by it first, then root": largest ** (1 / power) / weight,
            "multiplied by the weight: divide by it": (largest * weight) ** (1 / power),
            "the power is missing: take the root of largest / weight": largest / weight,
            "that is the power; its inverse, the root, is asked for: ** (1 / power)": (largest / weight) ** power,
            "divided by the power: the root is ** (1 / power)": largest / weight / power,
            "the sign of the power is turned round": (largest / weight) ** (-1 / power),
            "that is the penalty at this norm; the norm itself is asked for": largest,
            "that is the logarithm of the norm: take exp": math.log(right),
        }
        with _about(f"largest {largest:g}, weight {weight:g}, power {power:g}"):
            _compare(_number(_call(fn, largest, weight, power)), right, mistakes)
    return "passed: fp16 ends at a norm of 5.66, behind a loss scale of 16,384 at 1.12"


@exercise
def check_channel_shuffle(fn: Callable[[Tensor], Tensor]) -> str:
    """`fn(x (B, 2 * n, H, W)) -> (B, 2 * n, H, W)`: channel i of the first half beside channel i of the second."""
    for half in (2, 3):
        x = torch.arange(2.0 * 2 * half * 2).reshape(2, 2 * half, 1, 2)
        first, second, apart = x[:, :half], x[:, half:], torch.cat([x[:, ::2], x[:, 1::2]], 1)
        mistakes = {
            "nothing has moved: the axes of half and place have to change places before they are flattened": x,
            "neighbours were put apart; the other way round, the halves belong side by side": apart,
            "the halves have changed places, but are not mixed": torch.cat([second, first], 1),
            "the second half comes first in every pair": torch.stack([second, first], dim=2).flatten(1, 2),
        }
        hints: dict[Shape, str] = {(2, half, 2, 1, 2): "flatten the two axes of the channels into one"}
        _compare(_call(fn, x), torch.stack([first, second], dim=2).flatten(1, 2), mistakes, hints)
    return "passed: 0 n 1 n+1 2 n+2 ..."


@exercise
def check_energy_share(fn: Callable[[Tensor, Tensor], Tensor]) -> str:
    """`fn(image_part (B, 3, H, W), generated (B, 3, H, W)) -> scalar`: the first one's part of the energy of both."""
    draw = torch.Generator().manual_seed(0)
    a = 0.3 * torch.randn(2, 3, 4, 5, generator=draw) + 0.2
    b = torch.randn(2, 3, 4, 5, generator=draw) - 0.1
    energy, other, joint = a.square().mean(), b.square().mean(), (a + b).square().mean()
    mistakes = {
        "that is the ratio of the two energies: divide by their sum": energy / other,
        "that is the generator's share: the image's part goes on top": other / (energy + other),
        "divide by the sum of the energies, not by the energy of the sum: there branches may cancel": energy / joint,
        "those are absolute values: energy is the mean of the squares": a.abs().mean() / (a.abs() + b.abs()).mean(),
        "those are norms: leave out the square root": energy.sqrt() / (energy.sqrt() + other.sqrt()),
        "those are variances: the energy counts what all pixels have in common too": a.var() / (a.var() + b.var()),
        "the image's part alone: divide by the energy of both": energy,
    }
    hints: dict[Shape, str] = {(2,): "one number for the whole batch: take the mean over all axes"}
    _compare(torch.as_tensor(_call(fn, a, b)), energy / (energy + other), mistakes, hints)
    return "passed: 0 for a silent branch, 1 for a silent generator"


@exercise
def check_mixed(fn: Callable[[Tensor, Tensor, float], Tensor]) -> str:
    """`fn(features (B, Z), noise (B, Z), scale) -> (B, Z)`: features + scale * noise, rows of mean 0, variance 1."""
    draw = torch.Generator().manual_seed(0)
    features, noise = torch.randn(2, 4, 50, generator=draw)
    features = F.layer_norm(features, (50,))

    def normal(x: Tensor, dim: int | tuple[int, int], correction: int = 0) -> Tensor:
        return (x - x.mean(dim, keepdim=True)) / x.std(dim, keepdim=True, correction=correction)

    for scale in (1.0, 3.0, 0.0):
        mixed, value = features + scale * noise, _call(fn, features, noise, scale)
        _check_tensor(value, (4, 50))
        centred, std = mixed - mixed.mean(1, keepdim=True), mixed.std(1, keepdim=True, correction=0)
        if torch.allclose(value, normal(mixed, 1, correction=1), rtol=1e-3, atol=1e-4):
            continue  # with N - 1 in the variance: as good
        mistakes = {
            "the sum is not normalised: its variance is about 1 + scale ** 2": mixed,
            "the variance is 1, but the mean is not 0: subtract it": mixed / std,
            "the mean is 0, but the variance is not 1: divide by the standard deviation": centred,
            "divided by the variance: its root, the standard deviation, is asked for": centred / std**2,
            "normalised over the batch: each row has its own mean and variance": normal(mixed, 0),
            "normalised over all rows together: each has its own mean and variance": normal(mixed, (0, 1)),
            "the length is 1: it is the variance that should be": F.normalize(mixed, dim=1),
            "divided by sqrt(1 + scale ** 2): right on average, but not in every row": mixed / (1 + scale**2) ** 0.5,
            "the scale is missing": F.layer_norm(features + noise, (50,)),
            "the scale belongs to the noise, not to the features": F.layer_norm(scale * features + noise, (50,)),
        }
        _compare(value, normal(mixed, 1), mistakes)
    return "passed: every row has mean 0 and variance 1, whatever the scale"


@exercise
def check_energy_score(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """`fn(first (B, D), second (B, D), real (B, D)) -> scalar`: mean distances to the real, minus that of the two."""
    first, second, real = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    first, second = first + 0.5, (2 * second).requires_grad_()

    def score(third: float = -1, power: float = 2, root: float = 0.5) -> Tensor:
        between = ((a - b).abs().pow(power).sum(1).pow(root) for a, b in ((first, real), (second, real)))
        return sum(between, third * (first - second).abs().pow(power).sum(1).pow(root))  # (B,)

    mistakes = {
        "the distance of the two generated ones is added: what differs should be rewarded": score(1).mean(),
        "the distance of the two generated ones is missing: drawing always the same is free": score(0).mean(),
        "the whole has the wrong sign": -score().mean(),
        "those are squared distances: with them only means count, however alike pictures are": score(root=1).mean(),
        "those are sums of absolute differences: take the length": score(power=1, root=1).mean(),
        "take the mean over the pairs, not the sum": score().sum(),
    }
    hints: dict[Shape, str] = {(5,): "one number for the whole batch: take the mean over the pairs"}
    _compare(_call(fn, first, second, real), score().mean(), mistakes, hints, gradient=True)
    return "passed: near the real one both, and apart from each other"


@exercise
def check_nearest(fn: Callable[[Tensor, Tensor], Tensor]) -> str:
    """`fn(features (N, D), among (M, D)) -> (N,)`: each one's distance to the nearest of the M that isn't itself."""
    among = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    features = torch.cat([among[:2], among[2:4] + 0.1])  # two of them, and two others

    def away(power: float = 2, root: float = 0.5) -> Tensor:
        return (features[:, None] - among).abs().pow(power).sum(2).pow(root)  # (4, 6)

    def least(distances: Tensor) -> Tensor:
        return distances.where(distances > 0, torch.inf).min(1).values

    mistakes = {
        "what is among them finds itself, at distance 0: leave it out": away().min(1).values,
        "those are squared distances: take the length": least(away(root=1)),
        "those are sums of absolute differences: take the length": least(away(1, 1)),
        "that is the farthest": away().max(1).values,
        "that is the mean over all: take the nearest": away().mean(1),
    }
    hints: dict[Shape, str] = {(4, 6): "a distance to each of them: take the least", (): "one for each of the N"}
    _compare(_call(fn, features, among), least(away()), mistakes, hints)
    return "passed: nearest, and not to itself"


@exercise
def check_decibels(fn: Callable[[Tensor, Tensor], float]) -> str:
    """`fn(made (B, 3, H, W), wanted (B, 3, H, W)) -> float`: the PSNR of pictures in [-1, 1], in dB."""
    wanted, unlike = torch.rand(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = wanted + unlike * torch.tensor([0.1, 0.4])[:, None, None, None]
    error = (made - wanted).square()
    mean, each = float(error.mean()), error.flatten(1).mean(1)
    right = 10 * math.log10(4 / mean)
    mistakes = {
        "the range is 2, from -1 to 1: its square is 4, not 1": 10 * math.log10(1 / mean),
        "the square of the range belongs above the error: 4, not 2": 10 * math.log10(2 / mean),
        "those are pixels of 0 to 255; these lie in [-1, 1]": 10 * math.log10(255**2 / mean),
        "that is the natural logarithm: take log10": 10 * math.log(4 / mean),
        "of a ratio of squares take 10 log10, not 20": 20 * math.log10(4 / mean),
        "ten times the logarithm: bel became decibel": math.log10(4 / mean),
        "the sign is turned round: less error is more dB": -right,
        "square the error before its mean is taken": 10 * math.log10(4 / float((made - wanted).abs().mean())),
        "take the mean of the squared error, not its sum": 10 * math.log10(4 / float(error.sum())),
        "take the mean over all pictures first, then one logarithm": float((10 * (4 / each).log10()).mean()),
    }
    _compare(_number(_call(fn, made, wanted)), right, mistakes)
    return "passed: 40 dB is an error of a hundredth of the range"


@exercise
def check_modulated(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """`fn(x (B, C, h, h), weight (O, C, 3, 3), style (B, C)) -> (B, O, h, h)`: modulated and demodulated kernels."""
    draw = torch.Generator().manual_seed(0)
    x, style = torch.randn(2, 3, 5, 5, generator=draw), torch.rand(2, 3, generator=draw) + 0.5
    weight = torch.randn(4, 3, 3, 3, generator=draw)
    plain, own = F.conv2d(x * style[:, :, None, None], weight, padding=1), weight.square().sum((2, 3))  # (O, C)
    squares = style.square() @ own.T  # (B, O)

    def over(squares: Tensor) -> Tensor:
        return plain / squares.sqrt()[:, :, None, None]

    mistakes = {
        "demodulation is missing: divide each output channel by the length of its modulated kernel": plain,
        "the length is that of the kernels as they are: the style belongs to them": over(own.sum(1)[None]),
        "the style multiplies the kernels, so its square their squared length": over(style @ own.T),
        "divided by the squared length: take the root": over(squares.square()),
        "one length for all output channels: each has its own": over(squares.sum(1, keepdim=True)),
        "modulation is missing: multiply the channels that come in by the style": F.conv2d(x, weight, padding=1),
    }
    hints: dict[Shape, str] = {(2, 4, 3, 3): "a padding of 1 keeps height and width"}
    _compare(_call(fn, x, weight, style), over(squares), mistakes, hints)
    return "passed: one convolution for all pictures"
