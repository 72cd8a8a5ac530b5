"""The few padded image shapes that waste least on a dataset, and what each choice costs."""
