"""How the documentation is built. Nothing here needs the network."""

from importlib.metadata import version as installed_version

project = "relume"
author = "The relume maintainers"
copyright = author
version = release = installed_version("relume")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"

html_theme = "furo"
html_title = "relume"
