"""While a run goes on: what its answers and losses say, and what is done about it."""
