"""Sphinx configuration of the site; `book/build.py` stages what it reads."""
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from vfassoc import __version__  # noqa: E402

project = 'vfassoc'
author = 'the vfassoc authors'
copyright = 'the vfassoc authors, Apache-2.0'
version = release = __version__
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx_copybutton', 'sphinx-mathjax-offline', 'docments']
source_suffix = {'.md': 'myst-nb', '.ipynb': 'myst-nb'}
exclude_patterns = ['_executed']

html_theme = 'furo'
html_title = 'vfassoc'
html_static_path = ['static']
html_css_files = ['book.css']
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # a summary is fetched from the page, which a browser refuses for file://
pygments_style = 'friendly'

nb_execution_mode = 'off'
nb_ipywidgets_js = {}
nb_merge_streams = True
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence']
myst_dmath_double_inline = True
myst_heading_anchors = 4
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type']

autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
autodoc_class_signature = 'mixed'
add_module_names = False
toc_object_entries_show_parents = 'hide'
