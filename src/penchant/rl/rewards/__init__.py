"""Rewards: functions, reward models, their shaping, and how they fail."""
