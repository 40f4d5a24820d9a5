"""What the command line and `penchant.*` call."""
