"""Several processes as one run: discovery, collectives on the host, and the end of all when one fails."""
