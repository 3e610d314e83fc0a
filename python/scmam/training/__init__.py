"""Pretraining by Lightning: run folders, checkpoints, exact resumption, several processes."""

from .pretraining import pretrain

__all__ = ["pretrain"]
