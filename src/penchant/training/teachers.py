"""The teacher of a run that distills: whether it can serve, and loading it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, PeftModel

from penchant.core.errors import ModelError
from penchant.core.machine import resolve_precision
from penchant.core.screen import gibibytes
from penchant.models.adapter_files import adapter_vocabulary
from penchant.models.load import load_tokenizer
from penchant.models.locate import resolve
from penchant.models.memory import weight_bytes
from penchant.models.other_adapters import why_apart
from penchant.models.policy import PolicyScorer
from penchant.models.size import require_decoder, saved_settings
from penchant.models.teacher import Teacher, TeacherAdapter

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from penchant.config.keys import RunConfig
    from penchant.data.batch import Group
    from penchant.training.setup import Setup

logger = logging.getLogger("penchant")


def require_teacher(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a teacher that is not there, or gives its tokens other numbers than the policy does.

    Args:
        config: of the run, whose options name the teacher.
        tokenizer: the policy's.

    Raises:
        ModelError: naming the teacher, and the first token that differs.
    """
    options: Any = config.options
    named = options.teacher_model
    name = resolve(named, config.cache_dir)
    settings = saved_settings(name, trust_remote_code=config.trust_remote_code)
    require_decoder(settings, name)
    theirs = load_tokenizer(name, trust_remote_code=config.trust_remote_code).get_vocab()
    ours = tokenizer.get_vocab()
    wrong = sorted((i, token) for token, i in ours.items() if theirs.get(token) != i)
    if wrong:
        number, token = wrong[0]
        there = theirs.get(token)
        says = "does not know it" if there is None else f"gives it {there}"
        raise ModelError(
            f"teacher_model {named} has another tokenizer than model {config.model}: "
            f"{len(wrong):,} of {len(ours):,} tokens differ, such as {token!r}, which is {number} "
            f"for the model, and the teacher {says}; distributions are compared token by token, "
            "so give a teacher of the same family"
        )
    rows = adapter_vocabulary(name) or settings.get_text_config().vocab_size
    if rows < max(ours.values()) + 1:
        raise ModelError(
            f"teacher_model {named} has {rows:,} tokens, fewer than its own tokenizer's "
            f"{max(ours.values()) + 1:,}; give a teacher whose embeddings hold all of them"
        )


def make_teacher(
    config: RunConfig, accelerator: Accelerator, setup: Setup, groups: Sequence[Group]
) -> Teacher:
    """Load the teacher, as another adapter of the policy's base where that is what it is.

    Args:
        config, accelerator: of the run.
        setup: with the policy in place.
        groups: whose first records plan the teacher's passes.

    Raises:
        ModelError: nothing there, or no language model.
    """
    options: Any = config.options
    policy, name = setup.scorer, resolve(options.teacher_model, config.cache_dir)
    assert isinstance(policy, PolicyScorer)
    beta = config.spec.needs(options).divergence
    assert beta is not None
    if _shares_backbone(config, name, policy, setup.base):
        adapter = TeacherAdapter(policy, name)
        logger.info("teacher: %s, an adapter on the policy's own weights", options.teacher_model)
        return Teacher(adapter, beta, adapter.num_bytes)
    from penchant.training.reference_models import ReferenceModels
    from penchant.training.references import ReferenceMaker

    precision = resolve_precision(config.precision, accelerator.device)
    maker = ReferenceMaker(config, policy, accelerator, precision, setup.base)
    held = ReferenceModels(maker).load(name, groups, kind="teacher", padded=True)
    with held.active() as other:
        other.sample_from(temperature=options.temperature)
        teacher = Teacher(held, beta, weight_bytes(other))
    logger.info("teacher: %s, %s", options.teacher_model, gibibytes(teacher.num_bytes))
    return teacher


def _shares_backbone(config: RunConfig, name: str, policy: PolicyScorer, base: str) -> bool:
    """Whether the teacher is a plain LoRA adapter of the base that the policy's adapter is on."""
    if policy.is_sharded or config.peft or not isinstance(policy.model, PeftModel):
        return False
    if why_apart(name, policy.model, base) is not None:
        return False
    return not getattr(PeftConfig.from_pretrained(name), "modules_to_save", None)
