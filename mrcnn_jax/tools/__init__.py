"""Applications on top of the core: predict, check, convert, plan and report; `pages` has their common HTML."""
