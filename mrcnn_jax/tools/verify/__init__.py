"""Comparison of the AP that published weights reach here with their published AP."""
