"""Training: from validated keys to a finished run."""
