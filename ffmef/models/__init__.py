"""The networks that predict filters, and their weights."""
