"""HTML report of an evaluation: tables, curves, errors and images on one page.

write          the report, from the templates in templates/
tables         metrics, classes, errors and confusions
charts         precision-recall curves and histograms of scores
select_images  images to show
pictures       an image with its predictions and its annotations
labels         names and descriptions
"""
