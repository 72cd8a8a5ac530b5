"""What pages for people are made of, whatever they show: the page of a data set, the page of an evaluation.

document   a whole page, and what it may load and run: nothing
html       elements, with every text escaped
chart      the frame of a chart
drawing    photograph, boxes, skeletons and names of a picture
outline    masks as paths of SVG
base.css   colors, type, tables, charts and pictures, dark and light
"""
