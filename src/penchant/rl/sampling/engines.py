"""Which engine draws the answers: the cache here, continuous batching, or vLLM."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from penchant.core.errors import ConfigError
from penchant.core.team import ALONE, Team
from penchant.models.memory import is_quantised
from penchant.rl.sampling.automatic import AutomaticSampler, engines_of
from penchant.rl.sampling.base import Sampler
from penchant.rl.sampling.sampler import CachedSampler

if TYPE_CHECKING:
    from penchant.methods.online import OnlineOptions
    from penchant.models.scoring import Scorer
    from penchant.rl.sampling.vllm.engine import EngineSettings

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def require_engine(options: OnlineOptions, max_length: int, num_processes: int = 1) -> None:
    """Refuse an engine that is not there, before anything is loaded.

    Args:
        options: with `generation`.
        max_length: longest prompt with its answer, in tokens.
        num_processes: of the run.

    Raises:
        ConfigError: vLLM is not installed, or would run in each of several processes, or its
            server does not answer or was started otherwise than a run needs it.
    """
    if options.generation == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "generation: vllm needs vLLM: pip install vllm, or set generation to auto"
        )
    if options.generation == "vllm" and num_processes > 1:
        raise ConfigError(
            "generation: vllm runs in one process; several share a server: set generation to "
            "vllm-server"
        )
    if options.generation == "vllm-server":
        from penchant.core.http import HttpError
        from penchant.rl.sampling.vllm.control import START, Server, is_local

        assert options.vllm_url is not None
        try:
            Server.find(options.vllm_url, options.vllm_server_timeout, max_length)
        except HttpError as error:
            raise ConfigError(f"{error}; start a server first: {START}") from error
        if options.vllm_folder is None and not is_local(options.vllm_url):
            raise ConfigError(
                f"the server at {options.vllm_url} runs on another machine: set vllm_folder to a "
                "folder that both see, through which it gets the weights"
            )


@dataclass(frozen=True)
class Place:
    """What an engine samples from, and where.

    Attributes:
        policy: whose weights are sampled from.
        name: the resolved name of its model, which vLLM loads by itself.
        end_token_ids: any of them ends an answer.
        max_length: longest prompt with its answer, in tokens.
        precision: of the run, which is that of vLLM unless another is asked for.
        trust_remote_code: run code that comes with the model.
        team: the processes of the run.
    """

    policy: Scorer
    name: str
    end_token_ids: list[int]
    max_length: int
    precision: str = "fp32"
    trust_remote_code: bool = False
    team: Team = ALONE

    @property
    def device(self) -> str:
        """The kind of the policy's device."""
        return self.policy.device.type


def make_sampler(options: OnlineOptions, place: Place) -> Sampler:
    """The sampler that `generation` names; with auto the first that answers.

    Raises:
        ConfigError: an engine that does not run on this device.
    """
    names = engines_of(
        options.generation,
        place.device,
        num_processes=place.team.size,
        quantised=is_quantised(place.policy),
        sharded=place.policy.is_sharded,
    )
    if len(names) == 1:
        return _started(names[0], options, place)
    started = [(name, partial(_started, name, options, place)) for name in names]
    return AutomaticSampler(started, place.team)


def _started(engine: str, options: OnlineOptions, place: Place) -> Sampler:
    """An engine that is ready to answer."""
    policy, end_token_ids = place.policy, place.end_token_ids
    side_by_side = options.generation_batch_size
    if engine == "continuous":
        from penchant.rl.sampling.continuous import ContinuousSampler, require_continuous

        require_continuous()
        if place.device != "cuda":
            raise ConfigError(
                "generation: continuous needs a CUDA GPU; set generation to auto or cached"
            )
        return ContinuousSampler(policy, end_token_ids, side_by_side)
    if engine == "static":
        from penchant.rl.sampling.static import StaticSampler

        return StaticSampler(policy, end_token_ids, side_by_side)
    if engine == "vllm":
        from penchant.rl.sampling.vllm.engine import VllmSampler

        return VllmSampler.start(policy, place.name, end_token_ids, _settings(options, place))
    if engine == "vllm-server":
        from penchant.rl.sampling.vllm.control import Server
        from penchant.rl.sampling.vllm.server import VllmServerSampler

        assert options.vllm_url is not None
        patience = options.vllm_server_timeout
        return VllmServerSampler.start(
            policy,
            place.name,
            end_token_ids,
            server=Server.find(options.vllm_url, patience, place.max_length),
            folder=Path(options.vllm_folder) if options.vllm_folder else None,
            side_by_side=side_by_side,
            patience=patience,
            team=place.team,
        )
    return CachedSampler(policy, end_token_ids, side_by_side)


def _settings(options: OnlineOptions, place: Place) -> EngineSettings:
    from penchant.rl.sampling.vllm.engine import EngineSettings

    if options.vllm_enable_sleep_mode and place.device == "cpu":
        raise ConfigError("vllm_enable_sleep_mode needs a GPU: vLLM does not sleep on a CPU")
    text = place.policy.causal_model.config.get_text_config()
    positions = getattr(text, "max_position_embeddings", place.max_length)
    dtype = place.precision if options.vllm_dtype == "auto" else options.vllm_dtype
    return EngineSettings(
        max_model_len=options.vllm_max_model_length or min(place.max_length, positions),
        dtype=_DTYPES[dtype],
        gpu_memory_utilization=options.vllm_gpu_memory_utilization,
        tensor_parallel_size=options.vllm_tensor_parallel_size,
        enable_sleep_mode=options.vllm_enable_sleep_mode,
        max_num_seqs=options.generation_batch_size,
        trust_remote_code=place.trust_remote_code,
    )
