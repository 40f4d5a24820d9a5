"""Rows of each layout, checked and turned into records."""
