"""What pages for people are made of, whatever they show: the page of a data set, the page of an evaluation.

html       elements, with every text escaped
outline    masks as paths of SVG
base.css   colours, type, tables, charts and pictures, dark and light
"""
