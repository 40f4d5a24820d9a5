"""`penchant export`: a tuned model as a GGUF file, by llama.cpp's own converter."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from penchant.core.commands import install
from penchant.core.errors import ConfigError, ModelError
from penchant.core.screen import setup_logging
from penchant.models.locate import is_adapter, resolve
from penchant.models.score_model import is_score_model

logger = logging.getLogger("penchant")

# What llama.cpp's converter can write; auto: 16 bits, of the kind that loses least.
OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")
SCRIPT, WHERE = "convert_hf_to_gguf.py", "LLAMA_CPP"
LINES_TOLD = 5


def export_gguf(
    run: Path | str,
    output: Path | str | None = None,
    *,
    outtype: str = "auto",
    trust_remote_code: bool = False,
) -> Path:
    """Write a model as one GGUF file, for llama.cpp and what is built on it.

    An adapter is merged into its base first, in a folder that is removed again.

    Args:
        run: a run, or a folder with a model or an adapter.
        output: a new file; default: `model-OUTTYPE.gguf` in the run, or beside the model.
        outtype: one of `OUTTYPES`, the type of the weights.
        trust_remote_code: run code that comes with the model.

    Returns:
        The file.

    Raises:
        ConfigError: no converter, an unknown type, or something is in the output's place.
        ModelError: a reward model, or one that the converter refuses.
    """
    setup_logging()
    if outtype not in OUTTYPES:
        raise ConfigError(f"outtype must be one of {', '.join(OUTTYPES)}, got {outtype!r}")
    folder = Path(resolve(str(run)))
    if not folder.is_dir():
        raise ModelError(f"{run} is no folder; download the model, and give its folder")
    if is_score_model(str(folder)):
        raise ModelError(f"{run} is a reward model; a GGUF file holds models that answer")
    target = folder.with_name(f"model-{outtype}.gguf") if output is None else Path(output)
    if target.exists():
        raise ConfigError(f"{target} is there already; set --output to a new file")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {target.absolute().parent}; set another --output")
    converter = find_converter()
    partial = target.with_name(f".{target.name}.partial")
    if not is_adapter(folder):
        _convert(converter, folder, partial, outtype)
    else:
        from penchant.commands.merge import merge

        with tempfile.TemporaryDirectory(dir=target.absolute().parent) as scratch:
            logger.info("the adapter is merged into its base first")
            whole = merge(folder, Path(scratch) / "merged", trust_remote_code=trust_remote_code)
            _convert(converter, whole, partial, outtype)
    partial.replace(target)
    return target


def find_converter() -> list[str]:
    """The command that starts llama.cpp's converter: `LLAMA_CPP`, else what is on the PATH.

    Raises:
        ConfigError: there is none.
    """
    given = os.environ.get(WHERE)
    if given:
        script = Path(given) / SCRIPT if Path(given).is_dir() else Path(given)
        if not script.is_file():
            raise ConfigError(f"{WHERE} is {given}, where there is no {SCRIPT}; correct it")
        return [sys.executable, str(script)]
    if (found := shutil.which(SCRIPT)) is not None:
        return [sys.executable, found] if os.access(found, os.R_OK) else [found]
    raise ConfigError(
        f"no converter was found: llama.cpp brings it. git clone "
        f"https://github.com/ggml-org/llama.cpp and set {WHERE} to the folder, or put {SCRIPT} on "
        f"the PATH; what it imports comes with: {install('gguf')}"
    )


def _convert(converter: list[str], folder: Path, file: Path, outtype: str) -> None:
    """Run the converter.

    Raises:
        ModelError: it failed; with the last lines that it wrote.
    """
    words = [*converter, str(folder), "--outfile", str(file), "--outtype", outtype]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0 and file.is_file():
        return
    file.unlink(missing_ok=True)
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    said = "\n  ".join(lines[-LINES_TOLD:]) or "nothing"
    raise ModelError(
        f"{converter[-1]} could not convert {folder.name} (status {done.returncode}); it said:\n"
        f"  {said}"
    )
