"""The controls of the sampler panel and where they stand; what they do is in `sampler`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

from . import html as panel_html
from .results import Drawing

ROW = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "4px 14px"}
TABS = ("Pictures", "Two captions", "Grid")


class Controls:
    """Every control as an attribute; each has the CSS class `sampler-` and its name (`sampler-caption`, ...).

    Args:
        examples: captions to choose from.
        training: whether the button of the short training is shown.
    """

    def __init__(self, examples: Sequence[str], training: bool) -> None:
        first = examples[0] if examples else ""
        self.checkpoint = _field(ipywidgets.Dropdown, "Checkpoint", 330)
        self.averaged = ipywidgets.Checkbox(
            value=True, description="averaged weights (EMA)", indent=False, layout={"width": "auto"},
            tooltip="off: the weights in training, of a run folder",
        )  # fmt: skip
        self.again = _button("Look again", "search the folder for checkpoints made meanwhile")
        self.train = _button("Train a minute", "a short training of your own")
        self.train.layout.width = "125px"
        choices = [("choose one …", ""), *((text, text) for text in examples)]
        self.examples = _field(ipywidgets.Dropdown, "Examples", options=choices, disabled=not examples)
        self.caption = _field(ipywidgets.Text, "Caption", value=first, placeholder="what the picture should show")
        self.seed = _field(ipywidgets.IntText, "Seed", 210, value=0)
        self.roll = _button("Roll the dice", "another seed, drawn at once")
        meaning = "factor of the noise: below 1 likelier pictures, less varied"
        self.truncation = _slider("Truncation", 1.0, 0, 1.5, step=0.05, tooltip=meaning, continuous_update=False)
        self.draw = ipywidgets.Button(description="Draw", button_style="primary")
        self.cancel = _button("Cancel", "stop the work that is running", disabled=True)
        self.progress = ipywidgets.IntProgress(layout={"width": "220px", "visibility": "hidden"})
        self.amount = ipywidgets.Label(layout={"visibility": "hidden"})
        self.status, self.log = ipywidgets.HTML(), ipywidgets.Output()

        self.count = _slider("Pictures", 4, 1, 16)
        ways = [("as they come", 0), ("the nearest to CLIP of 16", 16), ("of 32", 32), ("of 64", 64)]
        self.best = _field(ipywidgets.Dropdown, "Show", 360, options=ways)
        self.pictures = ipywidgets.HTML()

        second = examples[1] if len(examples) > 1 else ""
        self.towards = _field(ipywidgets.Text, "Second", value=second, placeholder="the caption to go to")
        meaning = "0: the first caption, 1: the second, beyond: guidance"
        self.share = _slider("Its share", 0.5, -0.5, 1.5, step=0.05, tooltip=meaning)
        meaning = "so many of the last blocks get the second caption alone"
        self.late = _slider("Late blocks", 0, 0, 1, tooltip=meaning)
        self.frames = _slider("Frames", 24, 4, 96)
        self.kind = _field(ipywidgets.Dropdown, "File", 200, options=[("GIF", "gif"), ("MP4", "mp4")])
        self.animate = _button("Animate", "walk from the caption to the second one and back")
        self.mixture = ipywidgets.HTML()

        lines = "\n".join(examples)
        self.captions = _field(ipywidgets.Textarea, "Captions", rows=5, value=lines, placeholder="one a line")
        self.columns = _slider("Seeds", 6, 1, 8)
        self.grid = ipywidgets.HTML()

        self.history = ipywidgets.HBox(layout={"flex_flow": "row nowrap", "overflow": "auto", "grid_gap": "10px"})
        mixing, moving = _row(self.share, self.late), _row(self.frames, self.kind, self.animate)
        self.tabs = ipywidgets.Tab(
            [
                ipywidgets.VBox([_row(self.count, self.best), self.pictures]),
                ipywidgets.VBox([self.towards, mixing, moving, self.mixture]),
                ipywidgets.VBox([self.captions, self.columns, self.grid]),
            ],
            titles=TABS,
        )
        for name, control in vars(self).items():
            control.add_class(f"sampler-{name}")
        source = _row(self.checkpoint, self.averaged, self.again, *([self.train] if training else []))
        style = ipywidgets.HTML(panel_html.STYLE, layout={"display": "none"})
        noise = _row(self.seed, self.roll, self.truncation)
        work = _row(self.draw, self.cancel, self.progress, self.amount)
        below = self.status, self.tabs, self.history, source, self.log
        everything = [style, self.caption, self.examples, noise, work, *below]
        self.panel = ipywidgets.VBox(everything, layout={"max_width": "980px"})
        self.panel.add_class("sampler")


class HistoryEntry:
    """A drawing in the history strip: its first picture, and what can be done with it.

    Args:
        shown: makes a callback whose errors are shown.
        keep, back: what the buttons do.
    """

    def __init__(self, drawing: Drawing, shown: Callable, keep: Callable[[], None], back: Callable[[], None]) -> None:
        name = panel_html.picture(drawing.first, "image/png", 96, 64, drawing.title)
        number = f" × {len(drawing.files)}" if len(drawing.files) > 1 else ""
        title = drawing.title if len(drawing.title) <= 40 else f"{drawing.title[:38]}…"
        picture = ipywidgets.HTML(panel_html.figures([name], [title + number], 96))
        show = ipywidgets.Button(description="Show", tooltip=f"show again: {drawing.title}")
        keep_it = ipywidgets.Button(description="Keep", tooltip="write the files into the folder of kept ones")
        show.on_click(shown(back))
        keep_it.on_click(shown(keep))
        controls = {"show": show, "keep": keep_it, "download": ipywidgets.HTML(drawing.download())}
        for key, control in controls.items():
            control.add_class(f"sampler-{key}")
            control.layout.width = "96px"
        self.box = ipywidgets.VBox([picture, *controls.values()], layout={"min_width": "102px"})


def _button(text: str, tooltip: str, disabled: bool = False) -> ipywidgets.Button:
    return ipywidgets.Button(description=text, tooltip=tooltip, disabled=disabled, layout={"width": "110px"})


def _field(kind: type, text: str, width: int | None = None, **options: Any) -> Any:
    """A control of `kind` behind its description; without a width, in pixels, as wide as the panel."""
    layout = {"width": f"{width}px" if width else "auto"}
    return kind(description=text, style={"description_width": "104px"}, layout=layout, **options)


def _slider(text: str, value: float, low: float, high: float, **options: Any) -> Any:
    """A slider over whole numbers, or over all of them if it starts at a float."""
    kind = ipywidgets.FloatSlider if isinstance(value, float) else ipywidgets.IntSlider
    return _field(kind, text, 400, value=value, min=low, max=high, **options)


def _row(*controls: ipywidgets.Widget) -> ipywidgets.HBox:
    return ipywidgets.HBox(list(controls), layout=ROW)
