"""Sphinx: pages in Markdown, the API from the docstrings. `make docs` builds with warnings as errors."""

import re

import kan_kernels

project = "kan_kernels"
version = release = kan_kernels.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"kan_kernels {version}"
myst_heading_anchors = 3
default_role = "code"  # a word in single backticks, as the docstrings have it
smartquotes = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"  # signatures stay short
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def literal_equivalents(app, what, name, obj, options, lines):
    """The torch code under "Equivalent to" is code."""
    for k, line in enumerate(lines):
        if re.match(r"Equivalent to\b.*:$", line):
            lines[k] = line + ":"
            lines.insert(k + 1, "")
            break


def setup(app):
    app.connect("autodoc-process-docstring", literal_equivalents, priority=100)
