"""Preference-tune language models, and check the run before, during and after."""
