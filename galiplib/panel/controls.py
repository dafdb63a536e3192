"""The controls of the sampler panel and where they stand; what they do is in `widgets`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets

from . import html as panel_html
from .results import Drawing

LABEL = {"description_width": "104px"}
FULL = {"width": "auto"}
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
        self.checkpoint = ipywidgets.Dropdown(description="Checkpoint", style=LABEL, layout={"width": "330px"})
        self.averaged = ipywidgets.Checkbox(
            value=True, description="averaged weights (EMA)", indent=False, layout={"width": "auto"},
            tooltip="off: the weights in training, of a run folder",
        )  # fmt: skip
        self.again = _button("Look again", "search the folder for checkpoints made meanwhile")
        self.train = _button("Train a minute", "a short training of your own")
        self.train.layout.width = "125px"
        self.examples = ipywidgets.Dropdown(
            options=[("choose one …", ""), *((text, text) for text in examples)], description="Examples", style=LABEL,
            layout=FULL, disabled=not examples,
        )  # fmt: skip
        self.caption = ipywidgets.Text(
            value=first, description="Caption", style=LABEL, layout=FULL, placeholder="what the picture should show",
        )  # fmt: skip
        self.seed = ipywidgets.IntText(value=0, description="Seed", style=LABEL, layout={"width": "210px"})
        self.roll = _button("Roll the dice", "another seed, drawn at once")
        self.truncation = ipywidgets.FloatSlider(
            value=1, min=0, max=1.5, step=0.05, description="Truncation", style=LABEL, layout={"width": "400px"},
            tooltip="factor of the noise: below 1 likelier pictures, less varied", continuous_update=False,
        )  # fmt: skip
        self.draw = ipywidgets.Button(description="Draw", button_style="primary")
        self.cancel = _button("Cancel", "stop the work that is running", disabled=True)
        self.progress = ipywidgets.IntProgress(layout={"width": "220px", "visibility": "hidden"})
        self.amount = ipywidgets.Label(layout={"visibility": "hidden"})
        self.status, self.log = ipywidgets.HTML(), ipywidgets.Output()

        self.count = ipywidgets.IntSlider(
            value=4, min=1, max=16, description="Pictures", style=LABEL, layout={"width": "400px"}
        )
        self.best = ipywidgets.Dropdown(
            options=[("as they come", 0), ("the nearest to CLIP of 16", 16), ("of 32", 32), ("of 64", 64)],
            description="Show", style=LABEL, layout={"width": "360px"},
        )  # fmt: skip
        self.pictures = ipywidgets.HTML()

        self.towards = ipywidgets.Text(
            value=examples[1] if len(examples) > 1 else "", description="Second", style=LABEL, layout=FULL,
            placeholder="the caption to go to",
        )  # fmt: skip
        self.share = ipywidgets.FloatSlider(
            value=0.5, min=-0.5, max=1.5, step=0.05, description="Its share", style=LABEL, layout={"width": "400px"},
            tooltip="0: the first caption, 1: the second, beyond: guidance",
        )  # fmt: skip
        self.late = ipywidgets.IntSlider(
            value=0, min=0, max=1, description="Late blocks", style=LABEL, layout={"width": "400px"},
            tooltip="so many of the last blocks get the second caption alone",
        )  # fmt: skip
        self.frames = ipywidgets.IntSlider(
            value=24, min=4, max=96, description="Frames", style=LABEL, layout={"width": "400px"}
        )
        self.kind = ipywidgets.Dropdown(
            options=[("GIF", "gif"), ("MP4", "mp4")], description="File", style=LABEL, layout={"width": "200px"}
        )
        self.animate = _button("Animate", "walk from the caption to the second one and back")
        self.mixture = ipywidgets.HTML()

        self.captions = ipywidgets.Textarea(
            value="\n".join(examples), description="Captions", rows=5, style=LABEL, layout=FULL,
            placeholder="one a line",
        )  # fmt: skip
        self.columns = ipywidgets.IntSlider(
            value=6, min=1, max=8, description="Seeds", style=LABEL, layout={"width": "400px"}
        )
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
        self.panel = ipywidgets.VBox(
            [
                ipywidgets.HTML(panel_html.STYLE, layout={"display": "none"}),
                self.caption,
                self.examples,
                _row(self.seed, self.roll, self.truncation),
                _row(self.draw, self.cancel, self.progress, self.amount),
                self.status,
                self.tabs,
                self.history,
                source,
                self.log,
            ],
            layout={"max_width": "980px"},
        )
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


def _row(*controls: ipywidgets.Widget) -> ipywidgets.HBox:
    return ipywidgets.HBox(list(controls), layout=ROW)
