"""From examples to a method's inputs, losses and evaluations: one module a kind of data."""
