"""What predict.py is made of: where pictures come from, what is written of them, and the run in between."""
