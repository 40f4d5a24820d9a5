"""How a method would be run in the memory there is: LoRA or all weights, batches, reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from penchant.advising.findings import Findings
from penchant.core.target import Machine
from penchant.data.lengths import Sample
from penchant.methods import Method
from penchant.models.footprint import Footprint, Load, footprint
from penchant.models.rough_sizes import ModelSize, sizes_of

LORA_R = 16
MANY = 10_000  # records from which training all weights pays
MICRO_BATCHES = (4, 2, 1)


@dataclass(frozen=True)
class Plan:
    """A way to run a method.

    Attributes:
        lora_r: rank; 0 trains all weights.
        micro_batch, accumulation: records per forward pass, passes per step.
        checkpointing: activations are recomputed.
        reference: kind, as the configuration names it.
        dtype: of the weights; quantization: of the frozen ones; optim: the optimizer.
        memory: what that takes.
        fits: whether the machine has it.
        lora_bytes, full_bytes: what LoRA and all weights take at the same batch.
        full_reference_bytes: of which a copy as the reference.
    """

    lora_r: int
    micro_batch: int
    accumulation: int
    checkpointing: bool
    reference: str
    dtype: str
    quantization: str
    optim: str
    memory: Footprint
    fits: bool
    lora_bytes: float
    full_bytes: float
    full_reference_bytes: float


@dataclass(frozen=True)
class Kind:
    """What a plan trains, and what that stands on: the keys of that name."""

    lora_r: int
    dtype: str = "auto"
    reference: str = "auto"
    quantization: str = "none"
    optim: str = "adamw"


@dataclass(frozen=True)
class Planner:
    """Plans for one model, data set and machine."""

    size: ModelSize
    sample: Sample
    findings: Findings
    machine: Machine

    def plan(self, method: Method) -> Plan:
        """The first way that fits, from the quickest on; else the smallest."""
        plans = []
        for way in self._ways(method):
            plan = self._made(method, *way)
            if plan.fits:
                return plan
            plans.append(plan)
        return min(plans, key=lambda plan: plan.memory.peak)

    def batch(self) -> int:
        """Records per step: fewer where there would be too few steps."""
        num_records = self.findings.num_records
        return 8 if num_records < 300 else 16 if num_records < MANY else 32

    def half_length(self, method: Method, plan: Plan) -> Plan:
        """The same plan with half the lengths, for what does not fit."""
        cut = self.findings.tokens.cut
        shorter = replace(
            cut,
            max_length=max(2, cut.max_length // 2),
            max_prompt_length=max(1, cut.max_prompt_length // 2),
        )
        tokens = replace(self.findings.tokens, cut=shorter)
        other = replace(self, findings=replace(self.findings, tokens=tokens))
        kind = Kind(plan.lora_r, plan.dtype, plan.reference, plan.quantization, plan.optim)
        return other._made(method, kind, plan.checkpointing, plan.micro_batch)

    def _ways(self, method: Method) -> Iterator[tuple[Kind, bool, int]]:
        """(kind, checkpointing, micro-batch), the quickest first."""
        needs = method.needs(method.defaults)
        kinds = [Kind(LORA_R)]
        if self.machine.precision == "fp32":  # under bf16 a frozen base is that already
            kinds.append(Kind(LORA_R, dtype="bf16"))
        kinds.append(Kind(LORA_R, quantization="4bit"))
        if self.findings.num_records >= MANY:
            cacheable = method.needs_reference and not (needs.mismatches or method.samples)
            kinds = [*self._full(["auto", *(["cache"] if cacheable else [])]), *kinds]
        for kind in kinds:
            for checkpointing in (False, True):
                for micro_batch in MICRO_BATCHES:
                    yield kind, checkpointing, micro_batch

    def _full(self, references: list[str]) -> Iterator[Kind]:
        """All weights: as they are, with moments in 8 bits, and in bf16 where that is computed."""
        for dtype in ("auto", *(["bf16"] if self.machine.precision == "bf16" else [])):
            for optim in ("adamw", "adamw_8bit"):
                for reference in references:
                    yield Kind(0, dtype, reference, optim=optim)

    def _made(self, method: Method, kind: Kind, checkpointing: bool, micro_batch: int) -> Plan:
        mismatches = method.needs(method.defaults).mismatches
        answers = 2 if method.data == "pairs" or mismatches else 1
        tokens, predicted = self.sample.longest_pass(self.findings.tokens.cut, micro_batch, answers)
        accumulation = max(1, self.batch() // micro_batch)
        side_by_side = method.defaults.generation_batch_size if method.samples else 0
        load = Load(
            tokens,
            predicted,
            checkpointing,
            accumulates=accumulation > 1,
            side_by_side=side_by_side,
            cached=side_by_side * self.findings.tokens.cut.max_length,
        )

        def cost(rank: int, reference: bool, kind: Kind = kind) -> Footprint:
            half_base = (kind.dtype, self.machine.precision) if rank else (kind.dtype,)
            sizes = sizes_of(
                self.size,
                lora_r=rank,
                half_base="bf16" in half_base,
                reference=reference,
                precision=self.machine.precision,
                device=self.machine.device,
                quantization=kind.quantization if rank else "none",
                optim=kind.optim,
            )
            return footprint(sizes, load)

        # A copy, where all weights change and no cache stands in for it.
        lora = cost(LORA_R, reference=False)
        full = cost(0, method.needs_reference, kind=Kind(0))
        kept = method.needs_reference and kind.reference != "cache"
        memory = lora if kind.lora_r else cost(0, kept)
        return Plan(
            **asdict(kind),
            micro_batch=micro_batch,
            accumulation=accumulation,
            checkpointing=checkpointing,
            memory=memory,
            fits=memory.peak <= self.machine.usable_bytes,
            lora_bytes=lora.peak,
            full_bytes=full.peak,
            full_reference_bytes=full.parts["reference"],
        )
