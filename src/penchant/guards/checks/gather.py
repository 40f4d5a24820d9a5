"""The facts of a run that rules look at, from its records, tokens, tokenizer and model."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.core.findings import Finding, by_severity, refuse_errors, spoken
from penchant.data.batch import trained_spans
from penchant.data.faults import (
    Count,
    addressed,
    answers,
    count_faults,
    count_leaks,
    count_patterns,
)
from penchant.data.opening import Sources
from penchant.data.quality import measure_length_bias, signal_of
from penchant.data.records import Pair, Text, is_chat, prompt_key
from penchant.guards.checks import check_snapshot
from penchant.guards.checks.snapshot import DataFacts, ModelFacts, Snapshot, TokenFacts
from penchant.models.size import learned_positions
from penchant.training.kind import kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from penchant.config.keys import RunConfig
    from penchant.data.token_report import TokenReport
    from penchant.training.setup import Inputs, Record, RunData

# Near-duplicates are looked for among at most so many records: 1,000 dialogues cost under a second.
MANY_RECORDS = 20_000
DROPOUTS = (
    *("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout", "dropout"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout", "resid_dropout"),
)
DTYPE_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def gather_data(run_data: RunData, tokenizer: PreTrainedTokenizerBase) -> DataFacts:
    """Count what the records show.

    Args:
        run_data: with at least one training record.
        tokenizer: whose special tokens are looked for in plain strings.
    """
    train, evaluation = run_data.train, run_data.evaluation
    pairs = [record for record in train if isinstance(record, Pair)]
    shares = [pair.agreement for pair in pairs if pair.agreement is not None]
    noise = None
    if shares:
        from penchant.data.noise import measure_noise

        noise = measure_noise(shares)
    faults = _faults(train, evaluation)
    contradicted = faults["contradictions"].num if "contradictions" in faults else 0
    specials = [token for token in tokenizer.all_special_tokens if len(token) > 1]
    sources = run_data.sources
    return DataFacts(
        num_train=len(train),
        num_held_out=len(evaluation),
        num_prompts=len({prompt_key(record) for record in train}),
        num_chat=sum(is_chat(record.prompt) for record in train),
        num_rendered=sum(_rendered(record.prompt, specials) for record in train),
        num_ties=sum(one.ties for one in sources),
        num_refused=sum(len(one.refused) for one in sources),
        refused=dict(Counter(row.reason for one in sources for row in one.refused)),
        faults=faults,
        signal=signal_of(len(train), contradicted, noise),
        noise=noise,
        length=measure_length_bias(pairs) if pairs else None,
    )


def _rendered(prompt: Text, specials: Sequence[str]) -> bool:
    """Whether a plain string already has the format of a chat."""
    return isinstance(prompt, str) and any(token in prompt for token in specials)


def _faults(train: Sequence[Record], evaluation: Sequence[Record]) -> dict[str, Count]:
    """What `penchant data inspect` finds in the same records, counted under the same ids."""
    faults = {**count_faults(train), **count_patterns(train)}
    if evaluation:
        faults["leaks"] = count_leaks(train, evaluation)
    many = len(train) + len(evaluation) > MANY_RECORDS
    if many or any(importlib.util.find_spec(name) is None for name in ("rensa", "scipy")):
        return faults
    from penchant.data.near import count_near_repeats

    if answers(train[0]):  # prompts without answers may well be alike
        faults["near-duplicates"] = count_near_repeats(train)
    if evaluation:
        from penchant.data.near_leaks import count_near_leaks

        faults["near-leaks"] = count_near_leaks(train, evaluation)
    return faults


def gather_tokens(
    examples: Sequence[Any],
    report: TokenReport,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int],
) -> TokenFacts:
    """Count what tokenising made of the training records.

    Args:
        examples, report: as tokenised; at least one.
        tokenizer: with an EOS token.
        end_ids: tokens at which the model's answers end; empty where nothing says.
    """
    groups = [example.group() for example in examples]
    completions = [(group.prompt, ids) for group in groups for ids in group.completions]
    ends = {int(tokenizer.eos_token_id), *end_ids}
    specials = {*special_ids(tokenizer), *ends}
    # Of several turns each ends. What was cut does not end at all.
    turns = [ids[a:b] for _, ids in completions for a, b in trained_spans(ids)]
    whole = [ids for ids in turns if ids[-1] in specials]
    doubled = [_doubled(ids, specials, tokenizer) for ids in whole]
    # Of two ends the first one is that of the model: what follows it is another fault.
    single = [ids[-1] for ids, twice in zip(whole, doubled, strict=True) if not twice]
    last = [token for token in single if end_ids and token not in end_ids]
    early = [not ends.isdisjoint(ids[:-1]) for ids in whole]
    token = last[0] if last else int(tokenizer.eos_token_id)
    return TokenFacts(
        num_examples=len(examples),
        num_completions=len(completions),
        longest=max(len(g.prompt) + max(map(len, g.completions), default=0) for g in groups),
        prompts_cut=report.prompts_cut,
        completions_cut=report.completions_cut,
        dropped=dict(report.dropped),
        dropped_examples=dict(report.dropped_examples),
        unread=dict(report.unread),
        placed_apart=report.placed_apart,
        lost=dict(report.lost),
        lost_examples=dict(report.lost_examples),
        rewritten=report.rewritten,
        rewritten_example=report.rewritten_example,
        double_bos=sum(_begins_twice(group, tokenizer.bos_token_id, ends) for group in groups),
        doubled_end=sum(doubled),
        early_end=sum(a and not b for a, b in zip(early, doubled, strict=True)),
        unknown_end=len(last),
        end_token=str(tokenizer.convert_ids_to_tokens(token)),
    )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that is no text: those with a role, and those a template may use."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {*tokenizer.all_special_ids, *added}


def _begins_twice(group: Any, bos: Any, ends: set[int]) -> bool:
    if bos is None or bos in ends:
        return False
    return group.prompt[:2] == [bos, bos] or any(ids[:1] == [bos] for ids in group.completions)


def _doubled(ids: Sequence[int], specials: set[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether another end stands in front of the last token, with nothing but blanks between."""
    for token in reversed(ids[:-1]):
        if token in specials:
            return True
        if str(tokenizer.decode([token])).strip():
            return False
    return False


def gather_model(
    config: RunConfig,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int],
    settings: Any,
) -> ModelFacts:
    """Look at a model's configuration and tokenizer.

    Args:
        config: of the run.
        base: the resolved name of the model.
        tokenizer: with the run's template.
        end_ids: tokens at which the model's answers end.
        settings: the model's configuration as it was saved.
    """
    text = settings.get_text_config()
    ends = {tokenizer.eos_token_id, *end_ids}
    kind = str(getattr(settings, "dtype", None) or "").removeprefix("torch.")
    return ModelFacts(
        dtype=DTYPE_NAMES.get(kind, ""),
        dropout={n: v for n in DROPOUTS if isinstance(v := getattr(text, n, 0), float) and v > 0},
        has_template=_own_template(config, base, tokenizer),
        pad_is_end=tokenizer.pad_token_id in ends,
        pad_token=str(tokenizer.pad_token),
        context=getattr(text, "max_position_embeddings", None),
        absolute=learned_positions(settings) is not None,
        other_reference=_other_reference(config, base),
    )


def _own_template(config: RunConfig, base: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    if config.chat_template is None:
        return bool(tokenizer.chat_template)
    from penchant.models.load import load_tokenizer

    own = load_tokenizer(base, trust_remote_code=config.trust_remote_code)
    return bool(own.chat_template)


def _other_reference(config: RunConfig, base: str) -> bool:
    if config.reference_model in (None, config.model):
        return False
    from penchant.models.locate import resolve

    try:
        return Path(resolve(config.reference_model, config.cache_dir)) != Path(base)
    except ValueError:  # it is given as an object: what it holds is not known here
        return True


def take_snapshot(config: RunConfig, inputs: Inputs, num_processes: int = 1) -> Snapshot:
    """A run as rules see it."""
    tokenizer, end_ids = inputs.tokenizer, inputs.end_ids
    report = inputs.reports["training"]
    slowdown = None
    if "bf16" in (config.precision, config.dtype):
        from penchant.core.timing import bf16_slowdown

        slowdown = bf16_slowdown()
    return Snapshot(
        config=config,
        data=gather_data(inputs.run_data, tokenizer),
        tokens=gather_tokens(inputs.train_set, report, tokenizer, end_ids),
        model=gather_model(config, inputs.base, tokenizer, end_ids, inputs.settings),
        num_steps=kind_of(config.spec).num_steps(config, inputs.train_set, num_processes),
        num_processes=num_processes,
        bf16_slowdown=slowdown,
    )


def find_faults(run: Snapshot, examples: Sequence[Any]) -> list[Finding]:
    """What the rules and the method itself find, errors first, without what is silenced."""
    config = run.config
    own = config.spec.warnings(examples, config.options)
    found = spoken(by_severity([*check_snapshot(run), *own]), config.silence)
    data = Sources.of(config.data, config.split, config.columns).argument
    held_out = Sources.of(config.eval_data).argument if config.eval_data is not None else ""
    return [replace(one, remedy=addressed(one.remedy, data, held_out)) for one in found]


def checked(config: RunConfig, inputs: Inputs, num_processes: int = 1) -> Snapshot:
    """A run as rules see it, before a weight is loaded for it.

    Raises:
        ConfigError: the run would be wrong.
    """
    snapshot = take_snapshot(config, inputs, num_processes)
    refuse_errors(find_faults(snapshot, inputs.train_set))
    return snapshot
