"""From what a run is given to models that are loaded, planned and ready for the loop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penchant.core.findings import refuse_errors, spoken
from penchant.core.machine import map_large_blocks, out_of_memory_explained, resolve_precision
from penchant.models.architecture import router_coefficient
from penchant.models.memory import enable_checkpointing
from penchant.models.reference import AdapterReference, Reference
from penchant.models.selfcheck import plan_scoring
from penchant.training.accelerator import sharding_of, team_of
from penchant.training.kind import kind_of
from penchant.training.references import ReferenceMaker, find_difference, measure_cost
from penchant.training.setup import Inputs, Setup
from penchant.training.workload import spare_bytes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.data.batch import Group

logger = logging.getLogger("penchant")

# Records on which a reference is held against the policy that it is made from.
NUM_COMPARED = 4


@out_of_memory_explained(
    "the models were loaded and planned",
    "set quantization 4bit, lora_r above 0, reference cache, or a smaller model",
)
def prepare(
    config: RunConfig,
    accelerator: Accelerator,
    inputs: Inputs,
    *,
    model: Any = None,
    reference: Any = None,
    keep_reference: bool = False,
) -> Setup:
    """Load the models, plan how they score, and make the reference.

    Args:
        config, accelerator: of the run.
        inputs: as `read_inputs` returned them.
        model: in place of what `config.model` names.
        reference: likewise of `config.reference_model`, which must be set.
        keep_reference: with a cache, keep the reference in memory too, to compare with exactly.

    Raises:
        UserError: a model cannot be loaded, or cannot serve, or the reference made from the
            policy disagrees with it.
    """
    kind = kind_of(config.spec)
    precision = resolve_precision(config.precision, accelerator.device)
    sharded = sharding_of(config, accelerator) != "off"
    if config.spec.samples or sharded:  # gathered weights come and go
        map_large_blocks()
    if sharded or config.offload:
        from penchant.training.sharded import divide, require_divisible

        require_divisible(config, inputs.base, inputs.settings, precision, sharded=sharded)
    device = accelerator.device
    # Where processes divide the weights, the first loads them and hands out parts.
    empty = sharded and not accelerator.is_main_process
    examples = inputs.train_set
    policy = kind.load(config, precision, inputs.base, model, device, empty, examples)
    critic = None
    if kind.has_critic(config):
        critic = kind.load(config, precision, inputs.base, None, device, empty, examples)
    pad_token_id = inputs.tokenizer.pad_token_id
    assert pad_token_id is not None  # load_tokenizer falls back to EOS
    setup = Setup(**vars(inputs), scorer=kind.scorer(config, policy, int(pad_token_id), critic))
    coefficient = router_coefficient(inputs.settings, config.router_aux_loss_coef, inputs.base)
    if coefficient:
        from penchant.models.router import RouterLoss

        setup.scorer.router = RouterLoss(setup.scorer.causal_model, coefficient)
    if sharded:
        divide(setup.scorer, config, accelerator)
    spare = _plan(config, accelerator, setup)
    config = setup.decide(config)
    maker = ReferenceMaker(
        config, setup.scorer, accelerator, precision, setup.base,
        keep=keep_reference, loaded=reference,
    )  # fmt: skip
    compared = _make_reference(config, accelerator, setup, maker, spare)
    kind.complete(config, accelerator, setup)
    _require_same_start(config, accelerator, setup, compared)
    return setup


def _require_same_start(
    config: RunConfig, accelerator: Accelerator, setup: Setup, groups: Sequence[Group]
) -> None:
    """Refuse a run whose first loss is not the one that is known before.

    A fresh adapter changes nothing, and a copy is the policy: their log-ratios are 0.
    """
    reference = setup.reference
    if reference is None or config.reference_model or reference.kind.startswith("copy-"):
        return  # another model, or a rounded one, differs
    if config.peft.get("init_lora_weights", True) is False:
        return  # the adapter is asked to start as something else
    with accelerator.autocast():
        finding = find_difference(reference, setup.scorer, groups)
    refuse_errors(spoken([finding] if finding else [], config.silence))


def _plan(config: RunConfig, accelerator: Accelerator, setup: Setup) -> float:
    """Plan the policy's passes on its device; the bytes that they leave."""
    if not setup.scorer.is_sharded:
        setup.scorer.to(accelerator.device)
    groups = kind_of(config.spec).groups(config, setup.train_set)
    with accelerator.autocast():
        setup.plan = plan_scoring(
            setup.scorer,
            groups[:2],
            attention=config.attention,
            max_length=config.max_length,
            team=team_of(accelerator),
        ).describe()
        logger.info("%s", setup.plan)
    if config.max_tokens_per_batch == "auto":
        from penchant.training.token_limit import find_limit

        setup.decided["max_tokens_per_batch"] = find_limit(config, setup, accelerator)
    return spare_bytes(setup.decide(config), setup, accelerator)


def _make_reference(
    config: RunConfig,
    accelerator: Accelerator,
    setup: Setup,
    maker: ReferenceMaker,
    spare: float,
) -> list[Group]:
    """The reference, and checkpointing, as the spare memory allows; records it can score."""
    kind = maker.choose(spare)
    setup.checkpointing = _wants_checkpointing(
        config, spare - (maker.copy_bytes() if kind == "copy" else 0)
    )
    if setup.checkpointing:
        enable_checkpointing(setup.scorer)
    examples = setup.train_set
    if kind == "cache":
        examples = [
            *kind_of(config.spec).share(config, accelerator, setup).visited(),
            *setup.eval_set,
        ]
    groups = kind_of(config.spec).groups(config, examples)
    setup.reference = _reference(maker, kind, groups)
    if setup.reference is not None:
        with accelerator.autocast():
            sample = groups[:NUM_COMPARED] if not config.reference_model else []
            setup.reference_cost = measure_cost(setup.reference, setup.scorer, sample)
        logger.info("reference: %s%s", setup.reference.kind, setup.reference_cost.describe())
    return groups[:NUM_COMPARED]


def _reference(maker: ReferenceMaker, kind: str, groups: Sequence[Group]) -> Reference | None:
    """The reference of a kind; a cache is filled with `groups` here, before training."""
    if kind == "none":
        return None
    if kind == "adapter":
        return AdapterReference(maker.policy)
    from penchant.training.reference_models import ReferenceModels

    return ReferenceModels(maker).make(kind, groups)


def _wants_checkpointing(config: RunConfig, spare_bytes: float) -> bool:
    if config.gradient_checkpointing != "auto":
        return config.gradient_checkpointing == "on"
    return spare_bytes < 0
