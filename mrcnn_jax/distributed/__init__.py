"""Training and evaluation in several processes: cluster detection, host-side collectives, failure handling."""
