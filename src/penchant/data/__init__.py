"""Preference data: read, split, audited and tokenised."""
