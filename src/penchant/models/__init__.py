"""Models: loading, LoRA, attention, heads, scoring, references and sizes."""
