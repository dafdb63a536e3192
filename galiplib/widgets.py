"""The panel in which a notebook (or Voila) lets people draw pictures from captions of their own."""

from __future__ import annotations

import html
import time
import traceback
import warnings
from collections.abc import Sequence

try:
    import ipywidgets
except ModuleNotFoundError as error:
    raise ImportError("the sampler panel needs ipywidgets: pip install 'galiplib[notebooks]'") from error

from .clip_bridge import ClipBridge
from .generator import Generator
from .sampling import contact_sheet, png_bytes, sample

EXAMPLES = (
    "a red bird with black wings and a white belly",
    "a small yellow bird with blue wings in the snow",
    "this green bird has an orange belly",
    "a large white bird with a long red beak at sunset",
)
TILE = 180  # about the width of a picture in the panel, pixels
COLUMNS = 4


def sampler_panel(
    generator: Generator, bridge: ClipBridge, examples: Sequence[str] = EXAMPLES, checkpoint: str = ""
) -> ipywidgets.VBox:
    """Caption, seed, count and a button; the pictures; a line that tells what was drawn or went wrong.

    Draws the first example at once. Pictures carry caption, seed and `checkpoint` in their PNG text. Every
    control has a CSS class: sampler-examples, -caption, -seed, -count, -draw, -image, -status, -log.

    Args:
        examples: captions to choose from; the first one is what the panel starts with.
        checkpoint: the name of the weights, shown with the pictures.
    """
    return _Sampler(generator, bridge, tuple(examples), checkpoint).panel


class _Sampler:
    def __init__(
        self, generator: Generator, bridge: ClipBridge, examples: tuple[str, ...], checkpoint: str
    ) -> None:
        self.generator, self.bridge, self.checkpoint = generator, bridge, checkpoint
        self.drawn = 0
        wide = {"description_width": "70px"}
        full = {"width": "auto"}
        self.examples = ipywidgets.Dropdown(
            options=examples, description="Examples", style=wide, layout=full, disabled=not examples
        )
        self.caption = ipywidgets.Textarea(
            value=examples[0] if examples else "", description="Caption", rows=2, style=wide, layout=full
        )
        self.seed = ipywidgets.IntText(value=0, description="Seed", style=wide, layout={"width": "200px"})
        self.count = ipywidgets.IntSlider(
            value=4, min=1, max=16, description="Pictures", style=wide, layout={"width": "360px"}
        )
        self.button = ipywidgets.Button(description="Draw", icon="paint-brush", button_style="primary")
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        self.status = ipywidgets.HTML()
        self.log = ipywidgets.Output()
        controls = {
            "examples": self.examples,
            "caption": self.caption,
            "seed": self.seed,
            "count": self.count,
            "draw": self.button,
            "image": self.image,
            "status": self.status,
            "log": self.log,
        }
        for name, control in controls.items():
            control.add_class(f"sampler-{name}")
        self.examples.observe(self._take_example, names="value")
        self.button.on_click(self._draw)
        wrapping = {"flex_flow": "row wrap", "align_items": "center"}
        row = ipywidgets.HBox([self.seed, self.count, self.button], layout=wrapping)
        picture = ipywidgets.HBox([self.image])  # keeps the picture from being stretched to the panel's width
        parts = [self.examples, self.caption, row, self.status, picture, self.log]
        self.panel = ipywidgets.VBox(parts, layout={"max_width": "900px"})
        self.panel.add_class("sampler")
        self._draw()

    def _take_example(self, change: dict) -> None:
        self.caption.value = change["new"]

    def _draw(self, _button: ipywidgets.Button | None = None) -> None:
        """Draw what the controls say; the status comes last, so that whoever waits for it finds all done."""
        self.button.disabled = True
        self.status.value = _line("drawing …")
        self.log.outputs = ()
        with self.log:  # what is printed below appears in the panel
            try:
                status = self._show()
            except Exception as error:  # an exception in a callback is invisible in a notebook: say it
                if isinstance(error, ValueError):  # of the input: its message says all
                    status = _line(str(error), error=True)
                else:
                    status = _line(f"{type(error).__name__}: {error}", error=True)
                    traceback.print_exc()
        self.button.disabled = False
        self.status.value = status

    def _show(self) -> str:
        caption, seed, count = self.caption.value.strip(), self.seed.value, self.count.value
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", UserWarning)  # words that the CLIP doesn't know
            made = sample(self.generator, self.bridge, caption, count=count, seed=seed)
        seconds = time.perf_counter() - start
        scale = max(1, round(TILE / made.images.shape[-1]))
        sheet = contact_sheet(made.images, columns=COLUMNS, scale=scale)
        metadata = {"caption": caption, "seed": seed, "checkpoint": self.checkpoint}
        self.image.value = png_bytes(sheet, metadata)
        self.drawn += 1
        seeds = f"seed {seed}" if count == 1 else f"seeds {seed} to {seed + count - 1}"
        parts = [f"drawing {self.drawn}: {caption}", seeds, f"{seconds:.2f} s", self.checkpoint]
        parts += [f"note: {warning.message}" for warning in warned]
        return _line(" · ".join(filter(None, parts)))


def _line(text: str, error: bool = False) -> str:
    """Text, whatever it holds, as HTML that shows it as text."""
    colour = "#b3261e" if error else "#5f6670"
    return f'<span style="color: {colour}; overflow-wrap: anywhere">{html.escape(text)}</span>'
