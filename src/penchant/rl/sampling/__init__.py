"""Sampling: answers drawn from a policy, by one engine or another."""
