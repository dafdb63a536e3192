"""Sphinx's configuration of the course's site; site/make_site.py gathers the pages and runs it."""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

import galiplib

project = "GALIP in notebooks"
release = galiplib.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["notebooks/downloads"]
default_role = "literal"  # of `names` in docstrings
smartquotes = False  # quotes belong to values

html_theme = "furo"
html_title = project
templates_path = ["templates"]
parts = ["sidebar/brand", "sidebar/search", "draw", "sidebar/scroll-start", "sidebar/navigation", "sidebar/scroll-end"]
html_sidebars = {"**": [f"{part}.html" for part in parts]}
html_static_path = ["assets"]
html_css_files = ["site.css"]
html_favicon = "assets/icon.svg"
html_copy_source = html_show_sourcelink = html_show_copyright = False
html_math_renderer = "mathml"  # set by the browser itself: no script, no fonts
pygments_style, pygments_dark_style = "tango", "native"

nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_default_options = {"members": True, "exclude-members": "model_config"}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100


def short_signature(app, what, name, obj, options, signature, returns):
    """Without what a configuration's sections contain: `galip describe` lists it."""
    return ("", None) if name.endswith(".Config") else None


def setup(app: Sphinx) -> None:
    def formula(display: bool):
        def visit(translator, node: nodes.Element) -> None:
            translator.body.append(tex2mathml(node.astext(), as_block=display))
            raise nodes.SkipNode

        return visit, None

    app.add_html_math_renderer("mathml", formula(False), formula(True))
    app.connect("autodoc-process-signature", short_signature)
