"""The check command, `mrcnn check DATA`: a data set read, judged, counted and shown on a page.

sources     which JSON files a folder has, and where the images of each lie
survey      a file judged as training judges it, and the numbers in it
compare     what only shows when two files are laid beside each other
table       the numbers on a terminal
choose      which images to look at
picture     an image with its annotations drawn over it
charts      histograms
page        the page, of what mrcnn_jax/pages has
"""
