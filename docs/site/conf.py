"""The site, as Sphinx builds it from what tools/build_site.py has laid out (`make site`)."""

project = "svdnb"
author = "The svdnb authors"
copyright = "the svdnb authors; prose and pictures under CC BY 4.0"

extensions = ["myst_nb"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # they are executed before

html_theme = "furo"
html_title = "svdnb"
html_static_path = ["static"]
html_js_files = ["site.js"]
html_use_index = False
html_copy_source = False
html_show_sphinx = False
