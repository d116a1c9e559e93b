"""Rhumbline aligns one language model to many people at once: a preference is a direction in reward space."""

__version__ = "0.1.0"
