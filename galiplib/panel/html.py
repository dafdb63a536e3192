"""The HTML of the sampler panel: whatever a caption holds is shown as text; colours are those of JupyterLab's theme."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """<style>
.sampler { color: var(--jp-ui-font-color1, #222); }
.sampler-figures { display: flex; flex-wrap: wrap; gap: 10px; line-height: 1.35; }
.sampler-figures figure { margin: 0; }
.sampler-figures img, .sampler-figures video { display: block; width: 100%; border-radius: 4px; }
.sampler-figures figcaption { font-size: 12px; padding-top: 3px; overflow-wrap: anywhere; }
.sampler-table { border-spacing: 6px; line-height: 1.3; }
.sampler-table th { font-weight: normal; font-size: 12px; text-align: left; max-width: 190px; overflow-wrap: anywhere; }
.sampler-table img { display: block; border-radius: 4px; }
.sampler img.small { image-rendering: pixelated; }
.sampler a:focus-visible { outline: 3px solid var(--jp-brand-color1, #1976d2); outline-offset: 2px; }
.sampler a.jupyter-button { color: inherit; display: block; margin: 0; text-decoration: none; width: 100%; }
.sampler-line { line-height: 1.4; overflow-wrap: anywhere; color: var(--jp-ui-font-color1, #222); }
.sampler-error { color: var(--jp-error-color1, #c62828); font-weight: 600; }
.sampler-history { border-bottom: 1px solid var(--jp-border-color2, #ccc); }
</style>"""
BUTTON = "jupyter-widgets jupyter-button widget-button"  # a link that looks like the other buttons


def line(text: str, error: bool = False) -> str:
    """A status line, read out by screen readers when it changes."""
    kind = "sampler-line sampler-error" if error else "sampler-line"
    return f'<div role="status" class="{kind}">{html.escape(text)}</div>'


def data_uri(data: bytes, kind: str) -> str:
    """A file of the MIME type `kind` as an address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(data: bytes, kind: str, width: int, side: int, alt: str) -> str:
    """An image of `side` pixels, shown `width` wide; few pixels are magnified as squares."""
    shape = ' class="small"' if side < 128 else ""
    if kind.startswith("video/"):
        source = f'<video{shape} src="{data_uri(data, kind)}" width="{width}" autoplay loop muted controls '
        return source + f'aria-label="{html.escape(alt)}"></video>'
    return f'<img{shape} src="{data_uri(data, kind)}" width="{width}" alt="{html.escape(alt)}">'


def download(data: bytes, kind: str, name: str, inside: str, button: bool = False) -> str:
    """A link around the HTML `inside` that saves a file as `name`."""
    style = f' class="{BUTTON}"' if button else ""
    name = html.escape(name)
    return f'<a{style} href="{data_uri(data, kind)}" download="{name}" title="download {name}">{inside}</a>'


def figures(pictures: Iterable[str], captions: Iterable[str], width: int) -> str:
    """Pictures side by side, a text below each."""
    parts = [
        f'<figure style="width: {width}px">{shown}<figcaption>{html.escape(text)}</figcaption></figure>'
        for shown, text in zip(pictures, captions, strict=True)
    ]
    return f'<div class="sampler-figures">{"".join(parts)}</div>'


def table(rows: Sequence[Sequence[str]], names: Sequence[str], heads: Sequence[str]) -> str:
    """Pictures in rows, each under its name on the left, the columns under their heads."""
    top = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads)
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>'
        for name, row in zip(names, rows, strict=True)
    )
    return f'<table class="sampler-table"><tr><td></td>{top}</tr>{body}</table>'
