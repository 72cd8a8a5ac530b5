"""The procedural datasets: `generate` writes them; each kind is a module with `CATEGORIES` and `render`."""
