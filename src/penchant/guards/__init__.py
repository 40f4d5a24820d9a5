"""Mistakes caught before, during and after a run: checks, monitors, and what is done about them."""
