"""What a run will hold and take: memory by part, seconds, and what would fit."""
