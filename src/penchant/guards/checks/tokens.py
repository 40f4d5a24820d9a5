"""Rules over what the model will read: lengths, BOS and EOS, padding, chat templates."""

from __future__ import annotations

from collections.abc import Iterator

from penchant.core.findings import Finding, Severity
from penchant.data.records import counted
from penchant.guards.checks.snapshot import Snapshot

MANY_CUT = 0.05
LITTLE_ROOM = 1 / 8  # of max_length


def _severity(share: float, many: float = MANY_CUT) -> Severity:
    return "warning" if share > many else "note"


def prompts_cut(run: Snapshot) -> Iterator[Finding]:
    """Prompts that lose their beginning."""
    tokens, config = run.tokens, run.config
    if not tokens.prompts_cut:
        return
    share = tokens.prompts_cut / tokens.num_examples
    limit = f"max_prompt_length {config.prompt_budget}"
    if config.max_prompt_length is None:
        limit += " (not set: what max_length leaves)"
    yield Finding(
        "prompts-cut", _severity(share),
        f"{limit} cuts {counted(tokens.prompts_cut, 'prompt')} of {tokens.num_examples} "
        f"({share:.1%}) on the left",
        "raise max_prompt_length and max_length, or leave long prompts out",
        {"prompts_cut": tokens.prompts_cut, "share": share, "limit": config.prompt_budget},
    )  # fmt: skip


def answers_cut(run: Snapshot) -> Iterator[Finding]:
    """Completions that lose their end, and with it the token that ends them."""
    tokens, config = run.tokens, run.config
    if not tokens.completions_cut:
        return
    share = tokens.completions_cut / tokens.num_completions
    yield Finding(
        "answers-cut", _severity(share),
        f"max_length {config.max_length} cuts {counted(tokens.completions_cut, 'completion')} of "
        f"{tokens.num_completions} ({share:.1%}): they lose their end token, so that the model "
        "learns to go on",
        "raise max_length"
        + (", or lower max_prompt_length" if config.max_prompt_length else ""),
        {"completions_cut": tokens.completions_cut, "share": share, "limit": config.max_length},
    )  # fmt: skip


def answer_room(run: Snapshot) -> Iterator[Finding]:
    """A max_prompt_length that leaves next to nothing for the answers."""
    config = run.config
    room = config.max_length - config.prompt_budget
    if config.spec.samples or not config.max_prompt_length:
        return
    if room < LITTLE_ROOM * config.max_length:
        yield Finding(
            "answer-room", "warning",
            f"max_prompt_length {config.max_prompt_length} of max_length {config.max_length} "
            f"leaves {room} tokens for the answers behind the longest prompts",
            "lower max_prompt_length, or raise max_length",
            {"max_prompt_length": config.max_prompt_length, "max_length": config.max_length},
        )  # fmt: skip


def dropped(run: Snapshot) -> Iterator[Finding]:
    """Records that tokenising left out."""
    num = sum(run.tokens.dropped.values())
    if num:
        share = num / (num + run.tokens.num_examples)
        reasons = "; ".join(f"{n}: {reason}" for reason, n in run.tokens.dropped.items())
        yield Finding(
            "dropped-records", _severity(share, 0.01),
            f"{counted(num, 'record')} ({share:.1%}) cannot be trained on ({reasons})",
            "mend the records, or raise max_length", dict(run.tokens.dropped),
        )  # fmt: skip


def context(run: Snapshot) -> Iterator[Finding]:
    """Sequences longer than the model has positions for."""
    longest, limit = run.tokens.longest, run.model.context
    if limit is None or longest <= limit:
        return
    absolute = run.model.absolute
    yield Finding(
        "context", "error" if absolute else "warning",
        f"the longest sequence has {longest} tokens, the model's context {limit}"
        + (": positions beyond it do not exist" if absolute else ""),
        f"set max_length to {limit}", {"longest": longest, "context": limit},
    )  # fmt: skip


def double_bos(run: Snapshot) -> Iterator[Finding]:
    """The beginning marked twice, by the text and by the tokenizer or template."""
    if num := run.tokens.double_bos:
        yield Finding(
            "double-bos", "warning",
            f"{counted(num, 'record')} with a BOS token more than the one at the beginning",
            "take it out of the texts: the tokenizer or the chat template adds it", {"num": num},
        )  # fmt: skip


def ends(run: Snapshot) -> Iterator[Finding]:
    """The end token: twice, too early, or one that the model does not stop at."""
    tokens, remedy = run.tokens, "mend eos_token of the tokenizer, or the chat template"
    if tokens.doubled_end:
        yield Finding(
            "doubled-eos", "warning",
            f"{counted(tokens.doubled_end, 'completion')} end on two end tokens: the template's "
            f"own and {tokens.end_token}",
            remedy + ", so that both name the same token", {"num": tokens.doubled_end},
        )  # fmt: skip
    if tokens.early_end:
        yield Finding(
            "early-eos", "warning",
            f"{counted(tokens.early_end, 'completion')} with an end token before the last: the "
            "model learns to go on behind its end",
            "take end tokens and further turns out of the completions", {"num": tokens.early_end},
        )  # fmt: skip
    if tokens.unknown_end and not tokens.doubled_end:
        yield Finding(
            "missing-eos", "warning",
            f"{counted(tokens.unknown_end, 'completion')} end on {tokens.end_token}, which is not "
            "among the eos_token_id of the model's generation_config: its answers will not stop",
            "add it to eos_token_id in generation_config.json; or " + remedy,
            {"num": tokens.unknown_end, "end_token": tokens.end_token},
        )  # fmt: skip


def padding(run: Snapshot) -> Iterator[Finding]:
    """One token for padding and for the end."""
    if not run.model.pad_is_end:
        return
    scored = run.config.spec.model == "score"
    effect = (
        "a reward model's score is then read in front of the end token, not at it"
        if scored
        else "training here masks by position and learns the end; other tools mask the token, "
        "and teach a model never to stop"
    )
    yield Finding(
        "pad-is-eos", "warning" if scored else "note",
        f"the padding token is the end token ({run.model.pad_token}): {effect}",
        "give the tokenizer a pad_token of its own", {"pad_token": run.model.pad_token},
    )  # fmt: skip


def template(run: Snapshot) -> Iterator[Finding]:
    """Chat data and a model that knows no chat, or the reverse."""
    data, model = run.data, run.model
    plain = data.num_train - data.num_chat - data.num_rendered
    if data.num_chat and not model.has_template:
        yield Finding(
            "not-instruction-tuned", "warning",
            "the data are chat messages, but the model has no chat template of its own: it was "
            "not instruction-tuned, and meets the template's tokens for the first time",
            "start from an instruction-tuned model, or fine-tune on chats first",
            {"num_chat": data.num_chat},
        )  # fmt: skip
    if plain and model.has_template:
        yield Finding(
            "chat-as-text", "warning",
            f"{counted(plain, 'record')} of {data.num_train} are plain strings, but the model has "
            "a chat template: they are trained on without the format that it is talked to in",
            "give prompt and answers as messages ([{role: user, content: ...}])",
            {"num_plain": plain},
        )  # fmt: skip


RULES = (
    prompts_cut, answers_cut, answer_room, dropped, context, double_bos, ends, padding, template,
)  # fmt: skip
