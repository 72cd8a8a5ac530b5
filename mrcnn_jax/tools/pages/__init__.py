"""Building blocks of the HTML pages of `mrcnn check` and `mrcnn report`.

document   a complete page with its content security policy
html       elements, with all text escaped
chart      the frame of a chart
drawing    photograph, boxes, skeletons and names of an image
outline    masks as SVG paths
base.css   colors, type, tables, charts and images, dark and light
"""
