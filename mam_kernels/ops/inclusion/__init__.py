"""Probabilities of being drawn; see README.md in this folder."""
