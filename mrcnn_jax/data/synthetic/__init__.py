"""What the pictures of the procedural data set are made of: one module a kind, each with `CATEGORIES` and `render`."""
