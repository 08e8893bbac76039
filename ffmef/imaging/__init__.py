"""Picture files and colour."""
