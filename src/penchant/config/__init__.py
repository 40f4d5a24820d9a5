"""The flat configuration: every key, and what may be done at a finding."""
