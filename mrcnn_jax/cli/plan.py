"""Choose padded image shapes (buckets) that fit a dataset with little padding.

Prints the cost of each choice and the best settings. DATA is a recipe, such as
mask_rcnn_r50_fpn_1x, or COCO JSON files; images are not read.
"""

from __future__ import annotations

from collections.abc import Sequence

from mrcnn_jax.cli import common
from mrcnn_jax.tools.plan import proposals


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser("plan", __doc__, overrides=True)
    common.add(parser, "data", "DATA", "a recipe (name or file), or COCO JSON files", nargs="+")
    counts, text = range(1, proposals.MAX_BUCKETS + 1), "maximum number of buckets (default: %(default)s)"
    parser.add_argument("--buckets", type=int, default=4, choices=counts, help=text)
    options, overrides = common.parse(parser, arguments)
    config, sizes, others = proposals.load_sizes(options.data, overrides)
    proposals.print_costs(config, sizes, others, options.buckets)
