"""What the model of a run answers to the first held-out prompts, before training and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penchant.rl.sampling.answers import answer_prompts

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig
    from penchant.core.team import Team
    from penchant.training.folder import RunDirectory
    from penchant.training.setup import Setup


def answer_held_out(
    config: RunConfig, setup: Setup, directory: RunDirectory, team: Team, step: int
) -> None:
    """Answer the first held-out prompts, each once, into `samples.jsonl`.

    Args:
        config: with how many.
        setup: with held-out records.
        directory: of the run; a step whose answers it has is not answered again.
        team: the processes, which share the prompts.
        step: that the answers are of.
    """
    if any(record["step"] == step for record in directory.read("samples.jsonl")):
        return
    records = {record.where: record for record in setup.eval_records}
    prompts: dict[tuple[int, ...], Any] = {}
    for example in setup.eval_set:  # tokenising may have dropped some records
        prompts.setdefault(tuple(example.asked or example.prompt), records[example.where])
    chosen = list(prompts.items())[: config.eval_samples]
    if not chosen:
        return
    own = answer_prompts(
        setup.scorer,
        setup.tokenizer,
        [list(ids) for ids, _ in team.share(chosen)],
        end_token_ids=setup.end_ids,
        max_new_tokens=config.max_new_tokens,
    )
    answers = team.together(own)
    for (_, record), answer in zip(chosen, answers, strict=True):
        sample = {"step": step, "prompt": record.prompt, "answer": answer.text}
        length = {"num_tokens": answer.num_tokens, "ended": answer.ended}
        directory.append("samples.jsonl", {**sample, **length})
