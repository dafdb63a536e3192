"""The protocol of a text-to-image GAN: what it is given, what it draws, and the phases of its training step.

A system is one file in `galiplib/systems`. It holds its networks, says what each of its phases minimises, and knows
nothing of data, files or runs; `training.train_step` runs the phases in turn and knows nothing of the system.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .config import Config, ConfigError

Noise = dict[str, Tensor]  # all that is random in a step, by name; entry i belongs to picture i
Role = Literal["discriminator", "generator"]


@dataclass(frozen=True)
class Text:
    """What captions say to a system; entry i belongs to picture i, and what a system does not want is None."""

    sentence: Tensor  # (B, E), what generator and discriminator are conditioned on
    words: Tensor | None = None  # (B, L, W), zeros behind a caption's end
    mask: Tensor | None = None  # (B, L), True there
    picture: Tensor | None = None  # (B, E), the real picture's embedding
    classes: Tensor | None = None  # (B,), pictures of one class are no negatives of each other

    def __getitem__(self, part: slice | Tensor) -> Text:
        return Text(**{name: value[part] for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class Batch:
    """What a step works on: all of it, a process's share, or a part of that (`train.accumulate`)."""

    images: Tensor  # real pictures, (B, 3, H, W) in [-1, 1]
    text: Text  # their captions
    noise: Noise  # what `System.draw` gave
    # of a share or part: the sentences before its first and behind its last one, (1, E) both
    neighbours: tuple[Tensor, Tensor] | None = None

    def split(self, parts: int) -> list[Batch]:
        size = len(self.images) // parts
        return [self.share(slice(i, i + size), self.images[i : i + size]) for i in range(0, len(self.images), size)]

    def share(self, own: slice, images: Tensor) -> Batch:
        """The entries `own` of it, with their images."""
        sentence = self.text.sentence
        if own == slice(0, len(sentence)):
            return self
        before, behind = self.neighbours or (sentence[-1:], sentence[:1])
        around = torch.cat([before, sentence, behind])  # entry i + 1 is sentence i
        neighbours = around[own.start : own.start + 1], around[own.stop + 1 : own.stop + 2]
        return Batch(images, self.text[own], {name: value[own] for name, value in self.noise.items()}, neighbours)

    def with_next(self, project: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """What `project` makes of each sentence (B, E), and of the one behind it, every sentence computed once."""
        sentence = self.text.sentence
        made = project(sentence if self.neighbours is None else torch.cat([sentence, self.neighbours[1]]))
        return made[: len(sentence)], made.roll(-1, 0)[: len(sentence)]

    def with_previous(self, project: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The same with the sentence before it: picture i + 1 meets sentence i."""
        sentence = self.text.sentence
        made = project(sentence if self.neighbours is None else torch.cat([self.neighbours[0], sentence]))
        return made[-len(sentence) :], made.roll(1, 0)[-len(sentence) :]


@dataclass
class Step:
    """What the phases of one step, on one of the parts in which its batch goes through, share."""

    number: int  # from 1
    parts: int = 1
    made: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Any], graph: bool) -> Any:
        """What `make` gives, made once in a step: one graph serves all phases.

        In parts, whose graphs would not all fit into memory, a phase that goes back through it (`graph`) makes it anew.
        """
        if name not in self.made or (graph and self.parts > 1):
            with torch.set_grad_enabled(graph or self.parts == 1):
                self.made[name] = make()
        return self.made[name]


class Losses(NamedTuple):
    """What a phase minimises, a scalar, and values to report: means over the batch, scalars or of any shape."""

    total: Tensor
    noted: dict[str, Tensor]


class Phase(NamedTuple):
    """One update within a step, of the weights of one role."""

    name: str  # "d", "d_penalty", "g", ...; its gradients' norm is reported as grad_norm_<name>
    learns: Role
    losses: Callable[[Batch, Step], Losses]
    every: int = 1  # steps from one to the next (lazy regularisation, as in StyleGAN)


class AroundClip(nn.Module):
    """Networks around a CLIP, behind its bridge, which is the caller's and frozen: no part of the state dict."""

    def __init__(self, bridge: Any) -> None:
        super().__init__()
        self._bridge = (bridge,)  # in a tuple, so that it is no module of this one

    @property
    def bridge(self) -> Any:
        return self._bridge[0]


class TextToImage(AroundClip):
    """What draws: a generator, all that sampling, evaluation, panel and export know of a system."""

    wants: frozenset[str] = frozenset()  # {"words"} if `picture_of` needs them of a text
    noise_dim: int  # Z
    image_size: int  # side of its pictures in pixels
    truncates: bool = False  # by itself: its noise then has one number more, the factor (B, Z + 1)
    late_blocks: int = 0  # of which the last ones take another condition: `forward(noise, sentence, late, late_from)`

    def picture_of(self, noise: Tensor, text: Text) -> Tensor:
        """Noise (B, Z) and captions -> pictures (B, 3, H, W), about [-1, 1]; here by `forward(noise, sentence)`."""
        return self(noise, text.sentence)


class System(AroundClip, ABC):
    """A text-to-image GAN: its networks as one module to move and to save, and its training phases.

    A subclass makes its networks in `__init__`, the generator as `generator`, and says who learns in which phases.
    """

    wants: frozenset[str] = frozenset()  # of {"words", "picture", "classes"}: what it needs of `Text`
    whole_batch: ClassVar[bool] = False  # a loss compares all of a batch: it can't go through in parts
    betas: ClassVar[tuple[float, float]] = (0.0, 0.9)  # of Adam
    paper_average: ClassVar[float | None] = 0.0  # what it keeps of itself in a step of recipe "paper"; None: as ever
    generator: TextToImage
    ema: TextToImage  # the generator's average, which is sampled, measured and exported

    def __init__(self, bridge: Any, config: Config) -> None:
        super().__init__(bridge)
        self.config = config.train
        if self.whole_batch and config.train.accumulate > 1:
            raise ConfigError(f"train.accumulate must be 1: a loss of {config.system} compares the whole batch")

    @classmethod
    @abstractmethod
    def make_generator(cls, bridge: Any, config: Any) -> TextToImage:
        """The generator alone, as a file of weights needs it; `config` is the system's own section `model`."""

    def learners(self, role: Role) -> Sequence[nn.Module]:
        """The networks that phases of this role update; here `discriminator` and `head` on the one side."""
        names = ("generator",) if role == "generator" else ("discriminator", "head")
        return [self.get_submodule(name) for name in names]

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """The updates of a step, in order."""

    def draw(self, size: int, random: Callable[[int], torch.Generator]) -> Noise:
        """All that is random in a step, on the CPU; `random`: purpose -> its numbers, 2: noise, 3: augmentation."""
        return {"z": torch.randn(size, self.generator.noise_dim, generator=random(2))}

    def averaged(self) -> TextToImage:
        """What the EMA copies."""
        return self.generator

    def start_average(self) -> None:
        """Let the EMA be what is averaged, as it is now."""
        self.ema = copy.deepcopy(self.averaged()).requires_grad_(False).eval()

    def summary(self, noted: dict[str, Tensor]) -> dict[str, float]:
        """What was noted in a step, averaged over its parts and processes -> the numbers of its report."""
        return {name: value.item() for name, value in noted.items()}

    def compile_networks(self, backend: str = "inductor") -> None:
        """`train.compile`: all that no penalty differentiates twice; what can't be compiled runs as it is."""
        torch._dynamo.config.suppress_errors = True
        self.generator.compile(dynamic=False, backend=backend)
