"""The panel in which a notebook (or Voila) lets people draw pictures from captions of their own."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

try:
    import ipywidgets
except ModuleNotFoundError as error:
    raise ImportError("the sampler panel needs ipywidgets: pip install 'galiplib[notebooks]'") from error

from ..checkpoints.loading import SHIPPED, load_generator
from ..checkpoints.store import find_checkpoints
from ..config import Config
from ..runs.run import Run
from ..sampling.provenance import Origin
from ..sampling.recipe import Recipe
from ..sampling.sample import Samples, recipes_of, walk
from ..system import TextToImage
from . import html as panel_html
from .controls import TABS, Controls, HistoryEntry
from .jobs import Job, Jobs
from .results import Drawing, Made, drawing_job

EXAMPLES = (
    "a red bird with black wings and a white belly",
    "a small yellow bird with blue wings in the snow",
    "this green bird has an orange belly",
    "a large white bird with a long red beak at sunset",
)
HISTORY = 12  # drawings that the strip remembers
RESTORED = ("caption", "seed", "truncation", "count", "best", "towards", "share", "late", "captions", "columns")
OWN_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)  # whose messages say all


def sampler_panel(
    generator: TextToImage, checkpoint: str | Path = "mini", examples: Sequence[str] = EXAMPLES,
    folder: str | Path = "outputs", keep: str | Path | None = None, training: Config | None = None,
) -> ipywidgets.VBox:  # fmt: skip
    """Captions, seeds and all that can be mixed of them; the pictures; a history to keep and download them from.

    Draws the first example at once. Pictures carry caption, seed, settings and checkpoint in their PNG text, so that
    `sampling.replay` makes them again. A line tells what was drawn or went wrong; nothing fails silently. Every control
    has a CSS class, `sampler-` and its name in `Controls`.

    Args:
        generator: what to draw with first.
        checkpoint: where that was loaded from: "mini" or a path.
        examples: captions to choose from; the first one is what the panel starts with.
        folder: where to look for other checkpoints.
        keep: where "Keep" puts files; by default `folder`/kept.
        training: configuration of a short training (`train.max_steps`) that is offered as a button.
    """
    return _Sampler(generator, str(checkpoint), tuple(examples), Path(folder), keep, training).controls.panel


class _Sampler:
    def __init__(
        self, generator: TextToImage, checkpoint: str, examples: tuple[str, ...], folder: Path,
        keep: str | Path | None, training: Config | None,
    ) -> None:  # fmt: skip
        self.generator, self.origin = generator, Origin.of(generator, checkpoint)
        self.folder, self.keep = folder, folder / "kept" if keep is None else Path(keep)
        self.drawn = 0
        self.quiet = False  # while the panel itself sets controls
        self.jobs = Jobs(self._progress, self._busy)
        self.controls = c = Controls(examples, training is not None)
        self._find_checkpoints()
        for button, action in (
            (c.draw, self._draw), (c.roll, self._roll), (c.animate, self._animate), (c.cancel, self.jobs.cancel),
            (c.again, self._find_checkpoints),
        ):  # fmt: skip
            button.on_click(self._shown(action))
        if training is not None:
            c.train.on_click(self._shown(partial(self._train, training)))
        for control, action in (
            (c.examples, self._take_example), (c.share, self._preview), (c.late, self._preview),
            (c.checkpoint, self._load), (c.averaged, self._load),
        ):  # fmt: skip
            control.observe(self._shown(action), names="value")
        for field in (c.caption, c.towards):
            field.on_msg(self._entered)
        self._shown(self._draw)()

    # ------------------------------------------------------------ errors and progress

    def _shown(self, action: Callable[..., None]) -> Callable[..., None]:
        """`action` as a callback whose errors are shown: of themselves they are invisible in a notebook."""

        def callback(*_: Any) -> None:
            if not self.quiet:
                try:
                    action()
                except Exception as error:
                    self._failed(error)

        return callback

    def _entered(self, _: ipywidgets.Widget, content: dict[str, Any], __: Any) -> None:
        if content.get("event") == "submit":  # the Enter key
            self._shown(self._draw)()

    def _failed(self, error: Exception) -> None:
        own = isinstance(error, OWN_ERRORS)
        self._say(str(error) if own else f"{type(error).__name__}: {error}", error=True)
        if not own:
            self.controls.log.append_stderr("".join(traceback.format_exception(error)))

    def _say(self, text: str, error: bool = False) -> None:
        self.controls.status.value = panel_html.line(text, error)

    def _progress(self, done: int, total: int) -> None:
        self.controls.progress.max, self.controls.progress.value = total, done
        self.controls.amount.value = f"{done} of {total}"

    def _busy(self, busy: bool) -> None:
        c = self.controls
        c.cancel.disabled = not busy
        c.progress.value, c.amount.value = 0, ""
        c.progress.layout.visibility = c.amount.layout.visibility = "visible" if busy else "hidden"

    def _start(self, kind: str, what: str, job: Callable[[], Job], finished: Callable[[Any], None]) -> None:
        """Run a job, saying `what` meanwhile; errors of `finished` are shown like its own."""
        self.controls.log.outputs = ()
        self._say(f"{what} …")
        self.jobs.start(kind, job, finished, self._failed, lambda: self._say(f"{what}: cancelled"))

    @contextmanager
    def _by_itself(self) -> Iterator[None]:
        """Controls that are set in here act on nothing."""
        self.quiet = True
        try:
            yield
        finally:
            self.quiet = False

    # ------------------------------------------------------------ drawing

    def _caption(self) -> str:
        return " ".join(self.controls.caption.value.split())

    def _draw(self) -> None:
        """Draw what the open tab asks for."""
        c = self.controls
        caption, seed, truncation = self._caption(), c.seed.value, c.truncation.value
        tab, settings = c.tabs.selected_index, self._settings()
        if tab == 0:
            recipes = recipes_of(caption, max(c.best.value, c.count.value), seed, truncation=truncation)
            best = c.count.value if c.best.value else None
            self._make(recipes, partial(Drawing.of_pictures, title=caption, settings=settings), best)
        elif tab == 1:
            recipe = self._mixture()
            self._make([recipe], partial(Drawing.of_pictures, title=recipe.text, settings=settings))
        else:
            captions = [" ".join(line.split()) for line in c.captions.value.splitlines() if line.strip()]
            columns = c.columns.value
            recipes = recipes_of(captions, columns, seed, truncation=truncation)
            title = f"{len(captions)} captions, {columns} seeds each"
            self._make(recipes, partial(Drawing.of_grid, columns=columns, title=title, settings=settings))

    def _mixture(self) -> Recipe:
        c = self.controls
        towards = " ".join(c.towards.value.split())
        if not towards:
            raise ValueError("the second caption is empty: write what the picture should turn into")
        late = {"late": towards, "late_from": c.late.max - c.late.value} if c.late.value else {}
        return Recipe(self._caption(), c.seed.value, c.truncation.value, towards, round(c.share.value, 4), **late)

    def _animate(self) -> None:
        c, mixture = self.controls, self._mixture()
        recipes = walk(mixture.caption, mixture.towards, c.frames.value, mixture.seed, truncation=mixture.truncation)
        title, settings = f"{mixture.caption} → {mixture.towards}", self._settings()
        self._make(recipes, partial(Drawing.of_walk, kind=c.kind.value, title=title, settings=settings))

    def _preview(self) -> None:
        """The mixture as the slider stands now; of many moves only the last one is drawn."""
        recipe = self._mixture()
        self._make([recipe], partial(Drawing.of_pictures, title=recipe.text, settings={}), preview=True)

    def _make(
        self, recipes: list[Recipe], make: Callable[[Samples, Origin], Drawing], best: int | None = None,
        preview: bool = False,
    ) -> None:  # fmt: skip
        """Draw recipes into the open tab and remember them; a preview only shows in the mixture's."""
        view = TABS.index("Two captions") if preview else self.controls.tabs.selected_index

        def show(result: Made) -> None:
            what, origin = f"mixture: {result.drawing.title}", self.origin
            self._show(result.drawing, view)
            if not preview:
                self.drawn += 1
                what = f"drawing {self.drawn}: {result.drawing.title}"
                self._remember(result.drawing, view)
            seeds = sorted({recipe.seed for recipe in recipes})
            which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
            weights = origin.checkpoint if origin.ema else f"{origin.checkpoint} (in training)"
            notes = (f"note: {note}" for note in result.notes)
            self._say(" · ".join([what, which, f"{result.seconds:.2f} s", weights, *notes]))

        def job() -> Job:  # with the weights that are in use when its turn comes
            return drawing_job(self.generator, self.origin, recipes, make, best)

        self._start("preview" if preview else "draw", "drawing", job, show)

    def _show(self, drawing: Drawing, view: int) -> None:
        c = self.controls
        (c.pictures, c.mixture, c.grid)[view].value = drawing.shown

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self.controls, name).value for name in RESTORED}

    def _take_example(self) -> None:
        c = self.controls
        if chosen := c.examples.value:
            c.caption.value = chosen
            with self._by_itself():
                c.examples.value = ""  # so that the same one can be chosen again
            self._draw()

    def _roll(self) -> None:
        self.controls.seed.value = random.SystemRandom().randrange(10_000)
        self._draw()

    # ------------------------------------------------------------ history

    def _remember(self, drawing: Drawing, view: int) -> None:
        strip = self.controls.history
        entry = HistoryEntry(drawing, self._shown, partial(self._keep, drawing), partial(self._back, drawing, view))
        strip.children = (entry.box, *strip.children[: HISTORY - 1])

    def _keep(self, drawing: Drawing) -> None:
        paths = drawing.keep(self.keep)
        names = paths[0].name if len(paths) == 1 else f"{len(paths)} files"
        self._say(f"kept: {names} in {self.keep.absolute()}")

    def _back(self, drawing: Drawing, view: int) -> None:
        """A drawing of the history comes back into its view, its settings into the controls."""
        with self._by_itself():
            for name, value in drawing.settings.items():
                getattr(self.controls, name).value = value
            self.controls.tabs.selected_index = view
        self._show(drawing, view)
        self._say(f"back: {drawing.title}")

    # ------------------------------------------------------------ checkpoints

    def _find_checkpoints(self) -> None:
        c = self.controls
        paths = [*SHIPPED, self.origin.checkpoint, *map(str, find_checkpoints(self.folder))]
        with self._by_itself():
            c.checkpoint.options = [(self._label(path), path) for path in dict.fromkeys(paths)]
            c.checkpoint.value, c.averaged.value = self.origin.checkpoint, self.origin.ema
            c.late.max = self.generator.late_blocks
        c.averaged.disabled = not Path(self.origin.checkpoint).is_dir()

    def _label(self, path: str) -> str:
        if path in SHIPPED:
            return f"{path} (shipped)"
        return str(Path(path).relative_to(self.folder)) if Path(path).is_relative_to(self.folder) else path

    def _load(self) -> None:
        """Take the weights that the controls name; if that fails, the controls go back to those in use."""
        path, ema = self.controls.checkpoint.value, self.controls.averaged.value
        if not Path(path).is_dir():
            ema = True

        def job() -> Job:
            yield 0, 1
            generator = load_generator(path, ema=ema)
            return generator, Origin.of(generator, path, ema)

        def finished(loaded: tuple[TextToImage, Origin]) -> None:
            self.generator, self.origin = loaded
            self._find_checkpoints()
            self._draw()

        def failed(error: Exception) -> None:
            self._find_checkpoints()
            self._failed(error)

        def cancelled() -> None:
            self._find_checkpoints()
            self._say(f"loading {path}: cancelled")

        self._say(f"loading {path} …")
        self.jobs.start("load", job, finished, failed, cancelled)

    def _train(self, config: Config) -> None:
        folder = self.folder / "a_minute"

        def job() -> Job:
            yield 0, config.train.max_steps
            run = Run(folder, config, progress=False)
            if not run.finished:
                with closing(run.train()) as reports:
                    for report in reports:
                        yield report.step, config.train.max_steps

        def finished(_: None) -> None:
            self._find_checkpoints()
            with self._by_itself():
                self.controls.averaged.value = True
            self.controls.checkpoint.value = str(folder)  # which loads it

        self._start("train", f"training in {folder}", job, finished)
