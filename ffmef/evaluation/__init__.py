"""Walking a benchmark folder and reporting its scores."""
