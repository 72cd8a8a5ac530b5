"""HTML report of an evaluation: tables, curves, errors and images on one page."""
