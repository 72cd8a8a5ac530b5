"""Statistics and problems of a dataset, on the terminal and as an HTML page: the implementation of `mrcnn check`.

sources        COCO JSON files of a folder, and the folders of their images
survey         statistics of a file, and what training would refuse or drop
compare        differences and common images of two files
table          the statistics on a terminal
select_images  images to show
picture        an image with its annotations
charts         histograms
page           the HTML page, from the templates in templates/
"""
