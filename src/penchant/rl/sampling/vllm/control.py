"""What a vLLM server is asked beside answers: its model, and the weights that it answers with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from penchant.core.errors import ConfigError, TrainingError
from penchant.core.http import HttpError, JsonClient, addresses, bearer

START = "vllm serve MODEL --host 127.0.0.1 --logprobs-mode processed_logprobs"
START_ADAPTERS = (
    f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 {START} --enable-lora --max-lora-rank {{rank}}"
)
START_WEIGHTS = f"VLLM_SERVER_DEV_MODE=1 {START}"
LABEL = "penchant-"
"""What names of adapters and labels of weights begin with."""
# A log-prob of the only token that can be drawn is 0, rounding aside.
_CERTAIN = -1e-3
# How often a prefix cache is asked to forget: it cannot while blocks are in use.
_RESETS = 20


@dataclass(frozen=True)
class Server:
    """One vLLM server, and the name that it gives its model."""

    client: JsonClient
    model: str

    @classmethod
    def find(cls, url: str, timeout: float, max_length: int) -> Server:
        """The server at a URL, if it can serve a run.

        Args:
            url: of the server, on this machine or in a private network.
            timeout: seconds that a request may take.
            max_length: longest prompt with its answer, in tokens.

        Raises:
            ConfigError: the server is public, or was started so that a run would be wrong.
            HttpError: it does not answer.
        """
        require_private(url)
        client = JsonClient(url, timeout, bearer("VLLM_API_KEY"), proxies=False)
        content = client.get("/v1/models")
        try:
            card = next(card for card in content["data"] if not card.get("parent"))
            model, limit = str(card["id"]), int(card["max_model_len"])
        except (LookupError, TypeError, AttributeError, StopIteration):
            raise ConfigError(
                f"what answers at {url} is no vLLM server: it lists no model with its length; "
                f"start one: {START}"
            ) from None
        if limit < max_length:
            raise ConfigError(
                f"the server at {url} takes at most {limit} tokens, and max_length "
                f"is {max_length}: start it with --max-model-len {max_length}, or lower max_length"
            )
        server = cls(client, model)
        server._require_processed()
        return server

    def answers(self) -> bool:
        """Whether the server can take requests."""
        try:
            self.client.get("/health", timeout=10)
        except HttpError as error:
            if not error.passing:
                raise ConfigError(str(error)) from error
            return False
        return True

    def complete(self, payload: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices that answer a prompt."""
        return self.client.post("/v1/completions", payload)["choices"]

    def _require_processed(self) -> None:
        """Refuse log-probs that are not of the distribution that is drawn from."""
        only = {"top_k": 1, "temperature": 1.0, "max_tokens": 4, "ignore_eos": True, "logprobs": 0}
        (choice,) = self.complete({"model": self.model, "prompt": [1], **only})
        if min(choice["logprobs"]["token_logprobs"]) < _CERTAIN:
            raise ConfigError(
                f"the server at {self.client.url} returns log-probs from before temperature and "
                f"filters: start it with --logprobs-mode processed_logprobs ({START})"
            )

    def has_adapter(self, name: str) -> bool:
        """Whether an adapter of this name is loaded."""
        return any(card["id"] == name for card in self.client.get("/v1/models")["data"])

    def load_adapter(self, name: str, folder: str, rank: int) -> None:
        """Load an adapter from a folder that the server sees.

        Raises:
            ConfigError: the server was started without adapters, or refuses this one.
        """
        # Not in place: vLLM would read the folder again at every step that the adapter serves.
        payload = {"lora_name": name, "lora_path": folder}
        try:
            self.client.post("/v1/load_lora_adapter", payload)
        except HttpError as error:
            if error.status == 400 and self.has_adapter(name):
                return  # after a restart another process of the run was first
            start = START_ADAPTERS.format(rank=rank)
            raise self._explained(error, start, "the adapter") from error

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; one that is not there any more is forgotten already."""
        try:
            self.client.post("/v1/unload_lora_adapter", {"lora_name": name})
        except HttpError as error:
            if error.status != 404:
                raise

    def require_base(self) -> None:
        """Refuse to put an adapter on weights that a run has put in the place of the model's own.

        Raises:
            ConfigError: such weights are there, as far as the server tells.
        """
        try:
            label = self.client.get("/weight_info")["weight_version"]
        except HttpError as error:
            if error.status == 404:
                return  # not in development mode, so that nobody can have replaced them
            raise
        if label.startswith(LABEL):
            raise ConfigError(
                f"the server at {self.client.url} has the weights of another run ({label}) in "
                "place of its model's: start it again"
            )

    def require_fresh_heads(self) -> None:
        """Refuse a server on a CPU for a model whose head shares its weights with the embedding.

        vLLM 0.32 multiplies with a packed copy there, and keeps that of the weights before.

        Raises:
            ConfigError: it runs on a CPU, or is not in development mode.
        """
        info = self._developing(lambda: self.client.get("/server_info?config_format=json"))
        if info["vllm_config"]["device_config"]["device"] == "cpu":
            raise ConfigError(
                f"the server at {self.client.url} runs on a CPU, where vLLM keeps the old head of "
                "a model whose head is its embedding: train it with LoRA (lora_r above 0), or set "
                "generation to vllm"
            )

    def weights_label(self) -> str:
        """The label of the weights that the server answers with."""
        return self._developing(lambda: self.client.get("/weight_info"))["weight_version"]

    def load_weights(self, label: str, folder: str) -> None:
        """Load all weights from a folder that the server sees, and forget what was cached.

        Raises:
            ConfigError: the server was started without its development endpoints.
            TrainingError: it would answer from the cache of the weights before.
        """
        payload = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        self._developing(lambda: self.client.post("/collective_rpc", payload))
        for _ in range(_RESETS):
            if self.client.post("/reset_prefix_cache", {})["success"]:
                break
            if self.weights_label() == label:
                return  # another process of the run was first, and its requests are under way
            time.sleep(0.5)
        else:
            raise TrainingError(
                f"the server at {self.client.url} does not forget what it cached under the weights "
                "before: others use it; start one for this run alone"
            )
        self.client.post("/update_weight_version", {"new_version": label})

    def _developing(self, ask: Callable[[], Any]) -> Any:
        """Ask an endpoint that only a server in development mode has."""
        try:
            return ask()
        except HttpError as error:
            raise self._explained(error, START_WEIGHTS, "the weights") from error

    def _explained(self, error: HttpError, start: str, what: str) -> Exception:
        if error.passing:
            return error
        return ConfigError(
            f"the server at {self.client.url} did not take {what}: {error}. Start it with {start}; "
            "where it runs on another machine, vllm_folder names a folder that both see"
        )


def require_private(url: str) -> None:
    """Refuse a server that strangers may reach.

    Raises:
        ConfigError: an address that is neither of this machine nor of a private network, or one
            with a path.
    """
    found = addresses(url)
    if urlsplit(url).path not in ("", "/"):
        raise ConfigError(f"vllm_url {url} has a path; give http://HOST:PORT alone")
    public = [str(address) for address in found if address.is_global]
    if public:
        raise ConfigError(
            f"vllm_url {url} is a public address ({public[0]}): the endpoints that change a "
            "server's weights ask nobody who he is; let it listen on 127.0.0.1 or in a private "
            "network (through an SSH tunnel, for one)"
        )


def is_local(url: str) -> bool:
    """Whether a URL is of this machine's loopback, so that a server sees the same folders."""
    return all(address.is_loopback for address in addresses(url))
