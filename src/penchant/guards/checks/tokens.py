"""Rules over what the model will read: lengths, BOS and EOS, padding, chat templates."""

from __future__ import annotations

from collections.abc import Iterator

from penchant.core.findings import Finding, warning
from penchant.data.faults import Share
from penchant.data.records import counted
from penchant.guards.checks.snapshot import Snapshot

LITTLE_ROOM = 1 / 8  # of max_length


def prompts_cut(run: Snapshot) -> Iterator[Finding]:
    """Prompts that lose their beginning."""
    config = run.config
    limit = f"max_prompt_length {config.prompt_budget}"
    if config.max_prompt_length is None:
        limit += " (not set: what max_length leaves)"
    yield from Share("prompt", run.tokens.prompts_cut, run.tokens.num_examples).has(
        "prompts-cut",
        f"cut on the left by {limit}",
        "raise max_prompt_length and max_length, or leave long prompts out",
    )


def answers_cut(run: Snapshot) -> Iterator[Finding]:
    """Completions that lose their end, and with it the token that ends them."""
    yield from Share("completion", run.tokens.completions_cut, run.tokens.num_completions).has(
        "answers-cut",
        f"cut by max_length {run.config.max_length}, without the end token: the model learns to go "
        "on",
        "raise max_length" + (", or lower max_prompt_length" * bool(run.config.max_prompt_length)),
    )


def answer_room(run: Snapshot) -> Iterator[Finding]:
    """A max_prompt_length that leaves next to nothing for the answers."""
    config = run.config
    room = config.max_length - config.prompt_budget
    if config.spec.samples or not config.max_prompt_length:
        return
    if room < LITTLE_ROOM * config.max_length:
        yield warning(
            "answer-room",
            f"max_prompt_length {config.max_prompt_length} of max_length {config.max_length} "
            f"leaves {room} tokens for the answers after the longest prompts",
            "lower max_prompt_length, or raise max_length",
            {"max_prompt_length": config.max_prompt_length, "max_length": config.max_length},
        )


def dropped(run: Snapshot) -> Iterator[Finding]:
    """Records that tokenising left out."""
    num = sum(run.tokens.dropped.values())
    examples = run.tokens.dropped_examples
    reasons = "; ".join(
        f"{n}: {reason}, such as {examples[reason]}" for reason, n in run.tokens.dropped.items()
    )
    yield from Share("record", num, num + run.tokens.num_examples).has(
        "dropped-records",
        f"cannot be trained on ({reasons})",
        "correct the records, or raise max_length",
        many=0.01,
    )


def context(run: Snapshot) -> Iterator[Finding]:
    """Sequences longer than the model has positions for; answers may take all they are allowed."""
    sampled = getattr(run.options, "max_completion_length", 0) if run.config.spec.samples else 0
    longest, limit = run.tokens.longest + sampled, run.model.context
    if limit is None or longest <= limit:
        return
    absolute = run.model.absolute
    what = (
        f"the longest prompt and an answer of {sampled} tokens have"
        if sampled
        else ("the longest sequence has")
    )
    yield Finding(
        "context",
        "error" if absolute else "warning",
        f"{what} {longest} tokens, and the model's context is {limit}"
        + (": positions beyond it do not exist" if absolute else ""),
        f"lower max_completion_length or max_prompt_length, so that both are within {limit}"
        if sampled
        else f"set max_length to {limit}",
        {"longest": longest, "context": limit},
    )


def double_bos(run: Snapshot) -> Iterator[Finding]:
    """The beginning marked twice, by the text and by the tokenizer or template."""
    if num := run.tokens.double_bos:
        yield warning(
            "double-bos",
            f"{counted(num, 'record')} with a BOS token more than the one at the beginning",
            "take it out of the texts: the tokenizer or the chat template adds it",
            {"num": num},
        )


def ends(run: Snapshot) -> Iterator[Finding]:
    """The end token: twice, too early, or one that the model does not stop at."""
    tokens, remedy = run.tokens, "correct the tokenizer's eos_token, or the chat template"
    if tokens.doubled_end:
        yield warning(
            "doubled-eos",
            f"{counted(tokens.doubled_end, 'completion')} end on two end tokens: the template's "
            f"own and {tokens.end_token}",
            remedy + ", so that both name the same token",
            {"num": tokens.doubled_end},
        )
    if tokens.early_end and run.config.spec.model != "score":
        yield warning(
            "early-eos",
            f"{counted(tokens.early_end, 'completion')} with an end token before the last: the "
            "model learns to go on after its end",
            "take end tokens and further turns out of the completions",
            {"num": tokens.early_end},
        )
    if tokens.unknown_end:
        yield warning(
            "missing-eos",
            f"{counted(tokens.unknown_end, 'completion')} end on {tokens.end_token}, which is not "
            "among the eos_token_id of the model's generation_config: its answers will not stop",
            "add it to eos_token_id in generation_config.json; or " + remedy,
            {"num": tokens.unknown_end, "end_token": tokens.end_token},
        )


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
        "pad-is-eos",
        "warning" if scored else "note",
        f"the padding token is the end token ({run.model.pad_token}): {effect}",
        "give the tokenizer a pad_token of its own",
        {"pad_token": run.model.pad_token},
    )


def template(run: Snapshot) -> Iterator[Finding]:
    """Chat data and a model that knows no chat, or the reverse."""
    data, model = run.data, run.model
    plain = data.num_train - data.num_chat - data.num_rendered
    if data.num_chat and not model.has_template:
        yield warning(
            "not-instruction-tuned",
            "the data are chat messages, but the model has no chat template of its own: it was "
            "not instruction-tuned, and meets the template's tokens for the first time",
            "start from an instruction-tuned model, or fine-tune on chats first",
            {"num_chat": data.num_chat},
        )
    if plain and model.has_template:
        yield warning(
            "chat-as-text",
            f"{counted(plain, 'record')} of {data.num_train} are plain strings, but the model has "
            "a chat template: they are trained on without the format that it is talked to in",
            "make chats of them: penchant data convert FILE --text chat --output chat.jsonl",
            {"num_plain": plain},
        )


def template_drops(run: Snapshot) -> Iterator[Finding]:
    """Texts of the data that the chat template does not write, so that no model reads them."""
    tokens = run.tokens
    if not tokens.lost:
        return
    from penchant.data.rendered import EARLIER

    for what, num in tokens.lost.items():
        earlier = what == EARLIER
        yield Finding(
            "template-drops-text",
            "note" if earlier else "error",
            f"the chat template leaves out text of {what} in {counted(num, 'record')}, such as "
            f"{tokens.lost_examples[what]}",
            "set chat_template to chatml, which writes tools, calls and reasoning, or to a file "
            "that writes it; or take that text out of the data"
            + (", unless it is left out while sampling too, as reasoning often is" * earlier),
            {"num": num, "what": what, "example": tokens.lost_examples[what]},
        )


def template_rewrites(run: Snapshot) -> Iterator[Finding]:
    """Answers of several turns that the template writes otherwise once another turn follows."""
    if num := run.tokens.rewritten:
        yield warning(
            "template-rewrites-turns",
            f"{counted(num, 'record')} left out: the chat template writes an earlier answer "
            f"otherwise once turns follow it, such as {run.tokens.rewritten_example}; trained on "
            "so, it would stand where it is never sampled",
            "set loss_on_turns to last, chat_template to a file that keeps earlier turns, or "
            "chat_template_kwargs where the template has an option for it",
            {"num": num, "example": run.tokens.rewritten_example},
        )


def template_kwargs(run: Snapshot) -> Iterator[Finding]:
    """Options for the chat template that change nothing."""
    for name, num in run.tokens.unread.items():
        yield warning(
            "template-kwargs-unread",
            f"the chat template does not read {name}, which chat_template_kwargs sets in "
            f"{counted(num, 'record')}: it changes nothing",
            "correct its name, drop it, or set chat_template to a file that reads it",
            {"name": name, "num": num},
        )
    if run.config.chat_template_kwargs and not run.data.num_chat:
        yield warning(
            "template-kwargs-unread",
            "chat_template_kwargs is set, and no record is a chat: plain strings meet no template",
            "drop it, or make chats of them: penchant data convert FILE --text chat --output "
            "chat.jsonl",
        )


def template_parts(run: Snapshot) -> Iterator[Finding]:
    """A generation prompt, such as one that opens <think>, with which no answer goes on."""
    if num := run.tokens.placed_apart:
        yield warning(
            "generation-prompt",
            f"the chat template writes the answers of {counted(num, 'record')} otherwise than its "
            "generation prompt begins them: the model learns an answer at a place where it will "
            "be asked for something else, such as reasoning",
            "set chat_template to a file whose answers go on where its generation prompt ends, or "
            "put what the prompt opens, such as <think>, into the answers",
            {"num": num},
        )


RULES = (
    prompts_cut,
    answers_cut,
    answer_room,
    dropped,
    context,
    double_bos,
    ends,
    padding,
    template,
    template_drops,
    template_rewrites,
    template_kwargs,
    template_parts,
)
