"""Pairs and brackets of pictures for training."""
