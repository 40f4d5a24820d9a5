"""TRL's PPO of 2024: the script owns the loop, `step` learns from its answers and scores."""
