"""Sphinx turns this folder into a site: `make docs`. Every page is plain Markdown that reads as well without it."""

project = 'Sequencing'
extensions = ['myst_parser', 'sphinx.ext.mathjax']
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
html_theme = 'alabaster'
html_title = 'Sequencing'
html_theme_options = {'description': 'Sequence-to-sequence learning in plain TensorFlow 2', 'page_width': '70rem'}
