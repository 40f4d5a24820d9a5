"""Everything that rules look at before a run, as plain values: a rule is tested with a literal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penchant.data.faults import Count
from penchant.data.quality import LengthBias, Signal

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig
    from penchant.data.noise import Noise
    from penchant.methods import Facts


@dataclass(frozen=True)
class DataFacts:
    """What the records of a run show; counts are of training records where nothing else is said.

    Attributes:
        num_train, num_held_out: records on either side, as read.
        num_prompts: distinct ones.
        num_chat: records that are messages, not plain strings.
        num_rendered: plain strings that hold the tokenizer's special tokens as text.
        num_ties: records of both sides without a preference, which reading has left out.
        num_refused: rows of both sides that could not be read; refused: these by the reason.
        faults: by the id of `penchant.data.faults`, how many records have it; near duplicates only
            where they were looked for.
        signal: how clear the preferences are.
        noise, length: None where the data cannot tell.
    """

    num_train: int
    num_held_out: int = 0
    num_prompts: int = 0
    num_chat: int = 0
    num_rendered: int = 0
    num_ties: int = 0
    num_refused: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[str, Count] = field(default_factory=dict)
    signal: Signal = "unknown"
    noise: Noise | None = None
    length: LengthBias | None = None

    def num(self, fault: str) -> int:
        """How many records have a fault."""
        return self.faults[fault].num if fault in self.faults else 0


@dataclass(frozen=True)
class TokenFacts:
    """What tokenising made of the training records.

    Attributes:
        num_examples: that are trained on; num_completions: theirs.
        longest: tokens of the longest prompt with its longest completion.
        prompts_cut, completions_cut: by max_prompt_length and by max_length.
        dropped: records that cannot be trained on, by reason.
            dropped_examples: the place of the first of each.
        unread: records with an option that their chat template does not read, by its name.
        placed_apart: examples of which the template renders an answer otherwise than its
            generation prompt begins it.
        lost: examples of which the template leaves something out, by what that is;
            lost_examples: the first of each.
        rewritten: records left out because the template rewrites earlier turns of an answer;
            rewritten_example: the first of them.
        double_bos: examples that begin with two BOS tokens, or repeat it after the prompt.
        doubled_end: completions that end on two end tokens.
        early_end: completions with an end token before their last.
        unknown_end: uncut completions whose last token does not end the model's answers.
        end_token: that one, or the usual one.
    """

    num_examples: int
    num_completions: int = 0
    longest: int = 0
    prompts_cut: int = 0
    completions_cut: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    dropped_examples: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, int] = field(default_factory=dict)
    placed_apart: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)
    lost_examples: Mapping[str, str] = field(default_factory=dict)
    rewritten: int = 0
    rewritten_example: str = ""
    double_bos: int = 0
    doubled_end: int = 0
    early_end: int = 0
    unknown_end: int = 0
    end_token: str = ""


@dataclass(frozen=True)
class ModelFacts:
    """Of a model, by its configuration and tokenizer; no weights are read.

    Attributes:
        dtype: of the weights as they were saved: fp32, bf16, fp16, or empty where nothing says.
        dropout: rates above 0, by the configuration's name.
        has_template: whether it came with a chat template of its own.
        pad_is_end: whether its padding token ends answers too; pad_token: which that is.
        context: longest input in tokens, where there is a limit; absolute: positions beyond it do
            not exist, because they are learned.
        other_reference: whether `reference_model` names other weights than the policy starts from.
    """

    dtype: str = ""
    dropout: Mapping[str, float] = field(default_factory=dict)
    has_template: bool = True
    pad_is_end: bool = False
    pad_token: str = ""
    context: int | None = None
    absolute: bool = False
    other_reference: bool = False


@dataclass(frozen=True)
class Snapshot:
    """A run as it would start.

    Attributes:
        config: validated keys, with the method and its options.
        data, tokens, model: facts.
        num_steps: optimizer steps in all.
        num_processes: that share the run; each brings its own part of a step.
        bf16_slowdown: how many times as long a product takes in bf16 as in fp32; None where the
            run does not compute in bf16 on a CPU.
    """

    config: RunConfig
    data: DataFacts
    tokens: TokenFacts
    model: ModelFacts
    num_steps: int
    num_processes: int = 1
    bf16_slowdown: float | None = None

    @property
    def facts(self) -> Facts:
        """Of the method."""
        return self.config.spec.facts

    @property
    def options(self) -> Any:
        """Of the method; which keys there are depends on it."""
        return self.config.options

    @property
    def epochs(self) -> float:
        """Passes over the training data."""
        config = self.config
        if config.max_steps is None or config.spec.samples:
            return config.num_train_epochs
        step = config.per_device_train_batch_size * config.gradient_accumulation_steps
        return config.max_steps * step * self.num_processes / self.tokens.num_examples
