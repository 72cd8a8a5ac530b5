"""Compare the AP that published weights reach here with their published AP.

Fetches the weights, evaluates them in exact mode on the validation set, and
prints a table as Markdown, which OUTPUT/report.md and report.json contain too.
The results of each model are in OUTPUT/NAME; the same command continues after an
interruption. The exit status is 1 if an AP differs.

mrcnn convert coco2017 DIR --split=val downloads the validation set of COCO.
"""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Sequence

from mrcnn_jax.cli import common
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.runtime import compilation_cache, files
from mrcnn_jax.weights import zoo


def main(arguments: Sequence[str]) -> int:
    parser = _parser()
    options, overrides = common.parse(parser, arguments)
    from mrcnn_jax.tools.verify import report

    if options.table is not None:
        print(report.table([entry for path in options.table for entry in report.read_json(path)]), end="")
        return 0
    if bool(options.names) == options.all:
        parser.error("give NAME..., or --all")
    if options.data is None:
        parser.error("--data=DIR is missing: the folder with annotations/ and val2017/")
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit={options.limit}: give a number of images from 1")
    files.check_output(options.output, "--output", folder=True)
    entries = [entry for entry in zoo.ENTRIES if entry.data == "COCO" and report.published_ap(entry)]
    if options.names:
        entries = list(dict.fromkeys(map(zoo.find, options.names)))
    from mrcnn_jax.tools.verify import measure

    recipes = [measure.recipe(entry, options.data, overrides, options.limit) for entry in entries]
    compilation_cache.enable()
    open_images = functools.cache(measure.open_images)  # models share the data
    command = f"mrcnn verify {shlex.join(arguments)}"
    reports = []
    for index, (entry, recipe) in enumerate(zip(entries, recipes, strict=True), 1):
        print(f"{index}/{len(entries)}: {entry.name}", flush=True)
        images = open_images(recipe.data, options.limit)
        reports.append(measure.measure(entry, recipe, images, overrides, options.output, command))
    markdown = report.to_markdown(reports)
    files.write_text(options.output / "report.md", markdown)
    files.write_text(options.output / "report.json", report.to_json(reports))
    print(f"\n{markdown}\nthis table is in {options.output / 'report.md'}")
    return 0 if all(report.passed for report in reports) else 1


def _parser() -> argparse.ArgumentParser:
    parser = common.make_parser("verify", __doc__, overrides=True)
    parser.add_argument("names", nargs="*", metavar="NAME", help="published weights, see mrcnn weights list")
    parser.add_argument("--all", action="store_true", help="all detection models that were trained on COCO")
    common.add(parser, "--data", "DIR", "folder of the dataset, with annotations/ and val2017/")
    limit = "evaluate N images, evenly spaced in the order of their ids; the tolerance is then larger"
    common.add(parser, "--limit", "N", limit, int)
    output = "folder for the results (default: %(default)s)"
    common.add(parser, "--output", "DIR", output, default=files.user_path("verify"))
    table = "only print the table of all published weights with the results of these report.json files"
    common.add(parser, "--table", "REPORT.json", table, nargs="*")
    return parser
