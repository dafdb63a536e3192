"""Mini birds: a data set that is drawn, not downloaded, and whose truth is known.

Small drawn birds with ten captions each, in the manner of CUB-200-2011 (Wah et al., 2011, captions of Reed et
al., 2016). Every picture comes from a `Bird`, so "does the picture follow the caption?" can be measured.
"""

from __future__ import annotations

import math
import pickle
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .batches import Pixels, Source

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40), "orange": (250, 140, 22), "yellow": (252, 220, 50), "green": (34, 150, 58),
    "blue": (36, 88, 214), "purple": (128, 50, 170), "pink": (255, 150, 190), "brown": (122, 74, 38),
    "black": (34, 34, 40), "white": (248, 248, 248),
}  # fmt: skip
BEAK_COLOURS: dict[str, tuple[int, int, int]] = {
    "yellow": (250, 205, 30), "red": (205, 45, 35), "black": (40, 40, 45), "grey": (150, 150, 155),
}  # fmt: skip
#: background -> the phrase that captions use for it (no colour words: those belong to the bird)
PLACES = {"sky": "in the sky", "meadow": "in a meadow", "snow": "in the snow", "sunset": "at sunset"}

#: attribute -> its values, in the order of the class indices that `Bird.labels` and the judge use
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("body", "wing", "belly"), tuple(COLOURS)), "background": tuple(PLACES),
    "beak_colour": tuple(BEAK_COLOURS), "beak_length": ("short", "long"), "size": ("small", "large"),
}  # fmt: skip
CAPTIONS_PER_IMAGE = 10
SPLITS = ("train", "seen", "test")  # seen: new birds of trained combinations; test: combinations held out


@dataclass(frozen=True)
class Bird:
    """What a picture shows. Wing and belly colours differ from the body's, so that each part can be seen."""

    body: str
    wing: str
    belly: str
    background: str
    beak_colour: str
    beak_length: str
    size: str

    def labels(self) -> list[int]:
        """The class index of every attribute, in the order of `ATTRIBUTES`."""
        return [values.index(getattr(self, name)) for name, values in ATTRIBUTES.items()]

    @property
    def held_out(self) -> bool:
        """Whether this body-wing-belly combination is kept from training.

        One belly colour for each (body, wing) pair: every single colour and every pair still occurs in training.
        """
        body, wing, belly = self.labels()[:3]
        return (body + 3 * wing + 7 * belly) % len(COLOURS) == 0


def random_bird(rng: random.Random, held_out: bool = False) -> Bird:
    """A bird drawn uniformly from the trained (or the held-out) combinations."""
    while True:
        bird = Bird(**{name: rng.choice(values) for name, values in ATTRIBUTES.items()})
        if bird.body not in (bird.wing, bird.belly) and bird.held_out == held_out:
            return bird


# ---------------------------------------------------------------- drawing

SUPERSAMPLE = 4
# Outlines in bird coordinates: x to the right (the way it faces), y down, about one unit long; splines go through them.
_BODY = [
    (-0.47, 0.02), (-0.30, -0.10), (-0.12, -0.20), (0.08, -0.26), (0.17, -0.38), (0.31, -0.42), (0.43, -0.34),
    (0.45, -0.22), (0.39, -0.10), (0.36, 0.05), (0.26, 0.22), (0.06, 0.32), (-0.14, 0.28), (-0.30, 0.16),
]  # fmt: skip
_TAIL = [(-0.36, -0.08), (-0.62, -0.16), (-0.72, -0.10), (-0.70, 0.02), (-0.56, 0.10), (-0.34, 0.12)]
_BELLY = [
    (0.38, -0.08), (0.35, 0.06), (0.25, 0.21), (0.06, 0.305), (-0.13, 0.265), (-0.21, 0.19), (-0.06, 0.17),
    (0.10, 0.10), (0.20, -0.02), (0.27, -0.13), (0.34, -0.14),
]  # fmt: skip
_WING = [
    (0.16, -0.13), (0.17, 0.00), (0.08, 0.10), (-0.10, 0.14), (-0.32, 0.13), (-0.50, 0.07), (-0.36, -0.02),
    (-0.22, -0.12), (-0.04, -0.20), (0.08, -0.20),
]  # fmt: skip
_FEATHERS = [[(0.06, 0.04), (-0.16, 0.08), (-0.36, 0.075)], [(0.07, -0.05), (-0.12, 0.00), (-0.30, 0.01)]]


@cache
def _spline(points: tuple[tuple[float, float], ...], steps: int = 6) -> np.ndarray:
    """Closed Catmull-Rom curve through the points -> (len(points) * steps, 2)."""
    p = np.asarray(points)
    before, after, after2 = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (q[:, None, :] for q in (before, p, after, after2))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2)


_SKIES = {
    "sky": ((96, 170, 236), (196, 228, 250)), "meadow": ((176, 220, 236), (216, 238, 214)),
    "snow": ((150, 166, 190), (206, 214, 226)), "sunset": ((92, 58, 120), (252, 160, 84)),
}  # fmt: skip
_VARIANTS = 24  # scenery is drawn once per variant and reused: it is the slow part of a picture


@cache
def _scenery(background: str, variant: int, size: int) -> Image.Image:
    rng = random.Random(f"{background}-{variant}")
    (top, bottom), ramp = np.array(_SKIES[background]), np.linspace(0, 1, size)[:, None, None]  # from top to bottom
    sky = np.broadcast_to(top * (1 - ramp) + bottom * ramp, (size, size, 3))
    picture = Image.fromarray(sky.astype(np.uint8).copy())
    draw = ImageDraw.Draw(picture)

    def blob(x: float, y: float, rx: float, ry: float, fill: tuple[int, int, int]) -> None:
        draw.ellipse([(x - rx) * size, (y - ry) * size, (x + rx) * size, (y + ry) * size], fill=fill)

    if background == "sky":
        for _ in range(rng.randint(2, 4)):
            x, y, r = rng.random(), rng.uniform(0.08, 0.9), rng.uniform(0.05, 0.09)
            for dx, scale in ((-1.1, 0.75), (0, 1.1), (1.2, 0.8)):
                blob(x + dx * r, y - 0.1 * r * scale, r * scale * 1.3, r * scale * 0.8, (244, 249, 254))
    elif background == "meadow":
        blob(rng.uniform(0.0, 0.4), 1.05, 0.8, rng.uniform(0.42, 0.5), (122, 190, 92))
        blob(rng.uniform(0.6, 1.0), 1.12, 0.8, rng.uniform(0.40, 0.48), (92, 168, 74))
        for _ in range(46):
            x, y = rng.random() * size, size * rng.uniform(0.78, 1.0)
            draw.line([x, y, x + size * rng.uniform(-0.02, 0.02), y - size * 0.06], (64, 138, 58), size // 80)
        for _ in range(7):
            blob(rng.random(), rng.uniform(0.8, 0.97), 0.011, 0.011, rng.choice([(250, 240, 120), (250, 250, 250)]))
    elif background == "snow":
        blob(rng.uniform(0.1, 0.5), 1.05, 0.9, rng.uniform(0.34, 0.42), (236, 241, 248))
        blob(rng.uniform(0.6, 1.0), 1.12, 0.8, rng.uniform(0.34, 0.40), (250, 252, 255))
        for _ in range(26):
            blob(rng.random(), rng.uniform(0, 0.75), 0.012, 0.012, (250, 252, 255))
    else:
        blob(rng.uniform(0.15, 0.85), rng.uniform(0.5, 0.66), 0.13, 0.13, (255, 226, 130))
        blob(rng.uniform(0.0, 0.4), 1.08, 0.8, rng.uniform(0.30, 0.36), (96, 50, 72))
        blob(rng.uniform(0.6, 1.0), 1.10, 0.7, rng.uniform(0.26, 0.32), (70, 36, 58))
    return picture


def render(bird: Bird, pose: int, size: int = 56) -> np.ndarray:
    """Draw a bird -> (size, size, 3) uint8 RGB, the same for the same arguments.

    `pose` is the seed of the small things that captions do not name: place, tilt, scenery, shade.
    """
    rng = random.Random(pose)
    canvas = size * SUPERSAMPLE
    picture = _scenery(bird.background, rng.randrange(_VARIANTS), canvas).copy()
    draw = ImageDraw.Draw(picture)
    scale = (0.54 if bird.size == "small" else 0.67) * rng.uniform(0.97, 1.03) * canvas
    angle = math.radians(rng.uniform(-5, 5))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) * scale
    centre = np.array([0.50 + rng.uniform(-0.02, 0.02), 0.50 + rng.uniform(-0.02, 0.02)]) * canvas
    shade = rng.uniform(0.95, 1.04)
    line = max(1, canvas // 90)

    def place(points) -> list[tuple[float, float]]:
        return [tuple(point) for point in (np.asarray(points) @ turn + centre).tolist()]

    def tone(rgb: tuple[int, int, int], factor: float = 1.0) -> tuple[int, int, int]:
        red, green, blue = (min(255, int(value * factor * shade)) for value in rgb)
        return red, green, blue

    def shape(points, fill) -> None:
        outline = place(_spline(tuple(points)))
        draw.polygon(outline, fill=fill)
        draw.line([*outline, outline[0]], fill=(46, 38, 40), width=line, joint="curve")

    # The perch stands still, the bird moves a little on it.
    y = centre[1] + 0.45 * scale
    draw.line([0, y + canvas * 0.02, canvas, y - canvas * 0.02], fill=(96, 66, 44), width=canvas // 22)
    for foot in (0.0, 0.13):
        draw.line(place([(foot, 0.26), (foot + 0.02, 0.45)]), fill=(92, 76, 60), width=2 * line)

    body = COLOURS[bird.body]
    shape(_TAIL, tone(body, 0.86))
    shape(_BODY, tone(body))
    shape(_BELLY, tone(COLOURS[bird.belly]))
    wing = COLOURS[bird.wing]
    shape(_WING, tone(wing))
    crease = tone(wing, 0.72) if sum(wing) > 150 else (84, 84, 92)
    for feather in _FEATHERS:
        draw.line(place(feather), fill=crease, width=line + 1)
    reach = 0.57 if bird.beak_length == "short" else 0.70
    beak = place([(0.425, -0.335), (reach, -0.245), (0.425, -0.20)])
    draw.polygon(beak, fill=tone(BEAK_COLOURS[bird.beak_colour]))
    draw.line([*beak, beak[0]], fill=(46, 38, 40), width=line)
    ((eye_x, eye_y),) = place([(0.31, -0.30)])
    for radius, fill in ((0.052, (250, 250, 250)), (0.034, (20, 20, 24))):
        r = radius * scale
        draw.ellipse([eye_x - r, eye_y - r, eye_x + r, eye_y + r], fill=fill)
    return np.asarray(picture.reduce(SUPERSAMPLE))


# ---------------------------------------------------------------- captions

# What a caption names, over the ten captions of an image: from all three colours down to a single attribute.
_MENTIONS = (
    ("body", "wing", "belly"), ("body", "wing", "belly", "background"), ("body", "wing", "belly", "beak", "size"),
    ("body", "wing"), ("body", "belly", "background"), ("wing", "belly", "beak"), ("body",), ("wing",), ("belly",),
    ("background", "size"),
)  # fmt: skip


def caption(bird: Bird, mention: tuple[str, ...], rng: random.Random) -> str:
    """One caption that names the attributes in `mention` (body, wing, belly, beak, size, background) and no other."""
    only_noun = set(mention) <= {"body", "size", "background"}
    article = rng.choice(("a", "this is a") if only_noun else ("a", "this is a", "this"))
    parts: list[str] = []
    noun = [bird.size] if "size" in mention else []
    if "body" in mention:
        if rng.random() < 0.75:
            noun.append(bird.body)
        else:
            parts.append(f"a {bird.body} body")
    if "wing" in mention:
        parts.append(f"{bird.wing} wings")
    if "belly" in mention:
        parts.append(f"a {bird.belly} {rng.choice(('belly', 'belly', 'breast'))}")
    if "beak" in mention:
        parts.append(f"a {bird.beak_length} {bird.beak_colour} {rng.choice(('beak', 'bill'))}")
    rng.shuffle(parts)
    text = " ".join([article, *noun, "bird"])
    if parts:
        listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
        verb = "has" if article == "this" else rng.choice(("with", "that has"))
        text += f" {verb} {listed}"
    if "background" in mention:
        text += " " + PLACES[bird.background]
    return with_articles(text)


def with_articles(text: str) -> str:
    """The text with "a" or "an" as its next word wants it (orange is the only colour with a vowel in front)."""
    return re.sub(r"\ban? (orange\b)?", lambda m: "an orange" if m.group(1) else "a ", text)


def captions(bird: Bird, seed: int) -> list[str]:
    """Ten captions of a bird, each naming another subset of its attributes, single attributes included."""
    rng = random.Random(f"captions-{seed}")
    return [caption(bird, mention, rng) for mention in _MENTIONS]


_COLOUR = "(" + "|".join(COLOURS) + ")"
_ASKED = {
    "body": re.compile(rf"\b{_COLOUR} (?:bird|body)\b"),
    "wing": re.compile(rf"\b{_COLOUR} wings?\b"),
    "belly": re.compile(rf"\b{_COLOUR} (?:belly|breast)\b"),
    "background": re.compile("(" + "|".join(PLACES.values()) + ")"),
}
_SMALL = {  # what no judge is asked about
    "beak_colour": re.compile(rf"\b({'|'.join(BEAK_COLOURS)}) (?:beak|bill)\b"),
    "beak_length": re.compile(r"\b(short|long)\b"),
    "size": re.compile(r"\b(small|large)\b"),
}


def _named(text: str, patterns: dict[str, re.Pattern[str]]) -> dict[str, str]:
    """What a caption names -> {attribute: value}."""
    text = " ".join(re.sub("[\"'“”‘’]", " ", text.lower()).split())
    found = {name: match.group(1) for name, pattern in patterns.items() if (match := pattern.search(text))}
    if "background" in found:
        found["background"] = next(name for name, phrase in PLACES.items() if phrase == found["background"])
    return found


def asked(text: str) -> dict[str, int]:
    """What a caption asks for -> {attribute: class index}, over body, wing, belly and background, as far as named."""
    return {name: ATTRIBUTES[name].index(value) for name, value in _named(text, _ASKED).items()}


def fitting(text: str, seed: int) -> tuple[Bird, int]:
    """(bird, pose): a bird as the caption says, drawn uniformly from the trained combinations in what it leaves open.

    What it names goes before that: of a combination held out, or a wing in the body's colour.
    """
    told, rng = _named(text, _ASKED | _SMALL), random.Random(f"fitting-{seed}")
    for _ in range(100):
        bird = replace(random_bird(rng), **told)
        if bird.body not in (bird.wing, bird.belly) and not bird.held_out:
            break
    return bird, rng.randrange(2**31)


def counterfactuals(text: str, attribute: str) -> list[str]:
    """The caption with `attribute` (body, wing or belly) in each of the ten colours, in the order of `COLOURS`.

    Raises ValueError if the caption does not name that attribute.
    """
    match = _ASKED[attribute].search(text)
    if match is None:
        raise ValueError(f"the caption {text!r} does not name the {attribute} colour")
    start, end = match.span(1)
    return [with_articles(text[:start] + colour + text[end:]) for colour in COLOURS]


# ---------------------------------------------------------------- the data set


@dataclass(frozen=True)
class MiniBirds(Source):
    """A rendered split."""

    images: np.ndarray  # (N, size, size, 3) uint8
    captions: list[list[str]]  # N lists of ten
    labels: np.ndarray  # (N, 7) int64 class indices, columns in the order of `ATTRIBUTES`

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, rows: Sequence[int] | np.ndarray, random: np.random.Generator | None = None) -> Pixels:
        """Row numbers (B,) -> pictures and the rows; nothing is drawn: poses differ already."""
        rows = np.asarray(rows)
        return self.images[rows], rows


def birds(split: str, count: int, seed: int = 0) -> list[tuple[Bird, int]]:
    """The (bird, pose) pairs of a split, the same for the same arguments; ValueError if there can't be any."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: mini birds has {', '.join(SPLITS)}")
    if count < 1:
        raise ValueError(f"the {split} split needs at least one bird, not {count}")
    rng = random.Random(f"{split}-{seed}")
    return [(random_bird(rng, held_out=split == "test"), rng.randrange(2**31)) for _ in range(count)]


def build(split: str, count: int, size: int = 56, seed: int = 0, progress=iter) -> MiniBirds:
    """Render a split; `progress` may wrap the iteration (a tqdm, say)."""
    chosen = birds(split, count, seed)
    images = np.stack([render(bird, pose, size) for bird, pose in progress(chosen)])
    labels = np.array([bird.labels() for bird, _ in chosen], dtype=np.int64)
    return MiniBirds(images, [captions(bird, pose) for bird, pose in chosen], labels)


def write_cub(folder: str | Path, counts: dict[str, int], size: int = 256, seed: int = 0) -> None:
    """Write splits to disk in CUB-200-2011's layout, as GALIP's loaders expect it.

    `CUB_200_2011/images/<class>/<name>.jpg`, `CUB_200_2011/{images,bounding_boxes}.txt`, `text/<class>/<name>.txt`
    (a caption a line) and `{train,test}/filenames.pickle` (a list of `<class>/<name>`). The class is the body colour.
    `seen` birds are written among the test files' siblings as `seen/filenames.pickle`.
    """
    folder = Path(folder)
    root, keys = folder / "CUB_200_2011", list[str]()
    for split, count in counts.items():
        for index, (bird, pose) in enumerate(birds(split, count, seed)):
            kind = f"{list(COLOURS).index(bird.body) + 1:03d}.{bird.body.title()}_Bird"
            keys.append(f"{kind}/{split}_{index:05d}")
            picture, text = root / "images" / f"{keys[-1]}.jpg", folder / "text" / f"{keys[-1]}.txt"
            for path in (picture, text):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(render(bird, pose, size)).save(picture, quality=95)
            text.write_text("\n".join(captions(bird, pose)) + "\n")
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / split / "filenames.pickle").write_bytes(pickle.dumps(keys[-count:], protocol=2))
    box = " ".join(f"{share * size:.1f}" for share in (0.08, 0.10, 0.84, 0.80))
    (root / "images.txt").write_text("".join(f"{i} {key}.jpg\n" for i, key in enumerate(keys, 1)))
    (root / "bounding_boxes.txt").write_text("".join(f"{i} {box}\n" for i in range(1, len(keys) + 1)))
