"""The labelling page: two completions side by side, answers in SQLite next to the file."""
