"""Faces of other libraries on Penchant's engine."""
