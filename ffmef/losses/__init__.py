"""Losses to train fusion networks without a reference picture."""
