"""What each command is for: its line in the list of commands, and how its own help begins."""

from __future__ import annotations

CHAT_HELP = (
    "/new begins a new conversation; /system TEXT begins one under a system message, /system alone "
    "without; /quit or Ctrl-D ends"
)
# By command: its line, and its description.
DESCRIPTIONS: dict[str, tuple[str, str]] = {
    "train": ("tune a model", "Tune a model with one of the methods."),
    "check": (
        "what a run would meet: findings, one record by token, memory and time",
        "Look at what train would be given, without training; exit 1 on an error.",
    ),
    "sweep": (
        "one method at several settings",
        "Train a method at every combination of comma-separated values, and compare.",
    ),
    "compare": (
        "several methods by one yardstick, with intervals",
        "Train methods from one start on the same pairs, each at every combination of "
        "comma-separated values, and measure all on the same held-out pairs and prompts.",
    ),
    "config": (
        "every key of a method as a YAML file, with what it means",
        "Print a file that train takes, with every key, its meaning and its value.",
    ),
    "recipes": (
        "files of keys to start from: one a method, one a journey",
        "List the recipes, or copy one of them to edit and to run.",
    ),
    "evaluate": (
        "a model against what people preferred, a benchmark, its start, or tasks",
        "Held-out accuracy, margin, log-probs and KL of a model or a run; how a reward model or a "
        "judge ranks a benchmark's answers; the win rate of a policy's answers against its start; "
        "tasks of lm-evaluation-harness.",
    ),
    "methods": (
        "the methods, and when to use which",
        "The table of methods; with a model, the layout in which it would be scored.",
    ),
    "demo": (
        "tune a small real model on the sample set, and look",
        "Tune SmolLM2-135M-Instruct on the sample set with DPO, and show what changed.",
    ),
    "advise": (
        "recommend a method and settings for your data and machine",
        "Look at data, model and machine; rank the methods, with settings to start.",
    ),
    "label": (
        "a local page to compare two completions",
        "Serve a page on this machine to compare pairs; or export its answers.",
    ),
    "explain": (
        "what a finding means, and what to do about it",
        "Print the explanation of a finding.",
    ),
    "report": (
        "what happened in a run, as one page",
        "Write one HTML file that opens offline: of a run, or of several side by side.",
    ),
    "watch": (
        "look at a run as it goes on",
        "Show step, time left, metrics and findings until the run ends or Ctrl-C.",
    ),
    "chat": (
        "talk with a tuned model, what it was tuned from beside it",
        f"Answer what is typed, piped or given. In a conversation: {CHAT_HELP}.",
    ),
    "merge": (
        "a model of a run's adapter and its base, for tools that take no adapter",
        "Add a run's adapter to its base and save the whole model.",
    ),
    "export": (
        "a model as a GGUF file, for llama.cpp and Ollama",
        "Write a model in another format, with the converter that belongs to it.",
    ),
    "push": (
        "a run's model and its card to the hub",
        "Upload a model with its card, which shows figures, findings and answers to "
        "held-out prompts; --dry_run shows what would go. A new place is private.",
    ),
    "completion": (
        "completion of commands and keys in your shell",
        "Print a script for the shell, which completes commands, methods and keys.",
    ),
    "data build": (
        "make preference data of labels, votes, ratings, rankings, thumbs, chats or samples",
        "Make pairs or labels of judgements, or of sampled and scored answers.",
    ),
    "data convert": (
        "between pairs and labels, strings and chat, projects' layouts",
        "Write preference data in another form: another kind, text or layout.",
    ),
    "data split": (
        "divide a file by prompt into training and evaluation parts",
        "Divide rows by prompt, near-duplicates together, alike in source and length.",
    ),
    "data inspect": (
        "find what is wrong with preference data",
        "Ties, duplicates, contradictions, noise, biases, leaks, lengths: each with "
        "its rows and a remedy.",
    ),
    "data clean": (
        "drop what inspect found, by name",
        "Write the data without the rows of some findings, and those to OUT.removed.",
    ),
}


def described(command: str) -> dict[str, str]:
    """What argparse takes of a command's description."""
    line, description = DESCRIPTIONS[command]
    return {"help": line, "description": description}
