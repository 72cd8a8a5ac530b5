"""What the HTML pages of `mrcnn check` and `mrcnn report` share.

rendering   jinja2 templates of pages in one file, with all text escaped
chart       content of a chart
drawing     masks, boxes, skeletons and names of an image, of limited size
templates/  a page, a chart, a drawing; colors, type and layout, dark and light
"""
