"""Pictures in files and colour."""
