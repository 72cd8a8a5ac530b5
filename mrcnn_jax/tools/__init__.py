"""Products beside the core: predict, check, convert, plan, report, and the pages they share."""
