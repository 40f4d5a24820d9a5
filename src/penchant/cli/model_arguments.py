"""The arguments of commands about files of keys, and about models that runs have made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from penchant.cli.parser import Parser, add_command, add_shared
from penchant.core.commands import install
from penchant.core.errors import ConfigError
from penchant.core.screen import gibibytes

SHELLS = ("bash", "zsh", "tcsh")


def add_recipes(commands: Any) -> None:
    """`penchant recipes`."""
    recipes = add_command(commands, "recipes")
    recipes.add_argument("name", nargs="?", metavar="NAME", help="which to copy; without: list all")
    recipes.add_argument("--output", type=Path, metavar="FILE", help="default: NAME.yaml")


def run_recipes(values: dict[str, Any]) -> None:
    """List the recipes, or copy one."""
    from penchant.commands.recipes import copy_recipe, recipes

    name = values.get("name")
    if name is not None:
        file = copy_recipe(name, values.get("output"))
        print(f"{file}: set model and data in it, then: penchant train {file}")
        return
    if "output" in values:
        raise ConfigError("--output is where one recipe is copied; name the recipe too")
    known = recipes()
    width = max(len(one.name) for one in known)
    for one in known:
        print(f"{one.name:{width}}  {one.about}")
    print("\npenchant recipes NAME copies one into this folder")


def add_completion(commands: Any) -> None:
    """`penchant completion`."""
    completion = add_command(commands, "completion")
    completion.add_argument("shell", choices=SHELLS, help="whose script is printed")


def print_completion(parser: Parser, values: dict[str, Any]) -> None:
    """Print the script of a shell.

    Raises:
        ConfigError: shtab, which writes it, is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise ConfigError(
            f"completion is written by shtab, which is not installed; {install('completion')}"
        ) from None
    sys.stdout.write(shtab.complete(parser, shell=values["shell"]))


def add_merge(commands: Any) -> None:
    """`penchant merge`."""
    merge = add_command(commands, "merge")
    merge.add_argument("run", metavar="RUN", help="a run that trained an adapter, or the adapter")
    merge.add_argument("--output", type=Path, metavar="FOLDER", help="default: RUN/merged")
    add_shared(merge, "trust_remote_code")


def run_merge(values: dict[str, Any]) -> None:
    """Merge, and say where the model is and what loads it."""
    from penchant.commands.merge import merge
    from penchant.reporting.settings import how_to_load

    folder = _from_here(merge(values.pop("run"), **values))
    print(f"model: {folder}")
    for library, line in how_to_load(folder).items():
        print(f"{library + ':':14}{line}")


def _from_here(path: Path) -> Path:
    """A path as it would be typed here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def add_export(commands: Any) -> None:
    """`penchant export`."""
    export = add_command(commands, "export")
    export.add_argument("run", metavar="RUN", help="a run, or a folder with a model or an adapter")
    export.add_argument("--gguf", action="store_true", required=True,
        help="the format; llama.cpp's convert_hf_to_gguf.py writes it: on the PATH, or in the "
        "folder that the variable LLAMA_CPP names")  # fmt: skip
    export.add_argument("--output", type=Path, metavar="FILE",
        help="default: model-OUTTYPE.gguf in the run")  # fmt: skip
    export.add_argument("--outtype", metavar="TYPE",
        help="of the weights: auto (default: 16 bits), f32, f16, bf16 or q8_0")  # fmt: skip
    add_shared(export, "trust_remote_code")


def run_export(values: dict[str, Any]) -> None:
    """Export, and say what runs it."""
    from penchant.commands.export import export_gguf

    del values["gguf"]
    file = _from_here(export_gguf(values.pop("run"), **values))
    print(f"model: {file} ({gibibytes(file.stat().st_size)})")
    print(f"llama.cpp:    llama-cli -m {file}")
    print(f"Ollama:       a Modelfile with FROM {file.absolute()}, then ollama create NAME")


def add_push(commands: Any) -> None:
    """`penchant push`."""
    push = add_command(commands, "push")
    push.add_argument("run", metavar="RUN", help="the folder that train wrote to (output)")
    push.add_argument("name", metavar="OWNER/NAME", help="the model's place on the hub")
    push.add_argument("--public", action="store_true", help="anybody may see it")
    push.add_argument("--merged", action="store_true", help="the model that penchant merge made")
    push.add_argument("--base", metavar="OWNER/NAME",
        help="what an adapter stands on, where the run had it in a folder")  # fmt: skip
    push.add_argument("--dry_run", action="store_true", help="list the files and show the card")


def run_push(values: dict[str, Any]) -> None:
    """Upload, and say what and where."""
    from penchant.commands.push import push

    pushed = push(values.pop("run"), values.pop("name"), **values)
    for file, size in pushed.files.items():
        print(f"{size:>14,} bytes  {file}")
    if pushed.url is None:
        print(f"\nthe card:\n\n{pushed.card}")
        print(f"nothing was uploaded; without --dry_run this goes to {pushed.name}")
    else:
        print(f"model: {pushed.url}")


def add_chat(commands: Any) -> None:
    """`penchant chat`."""
    chat = add_command(commands, "chat")
    add = chat.add_argument
    add("model", metavar="RUN", help="a run, a model folder, a hub id, a .gguf, an adapter")
    add("--prompt", action="append", metavar="TEXT",
        help="answer this, and end; repeated, each in a conversation of its own")  # fmt: skip
    add("--prompts", metavar="FILE", help="answer each prompt of a file that training could read")
    add("--system", metavar="TEXT", help="a system message")
    add("--start", metavar="MODEL",
        help="the model beside it (default: what the run began with); none: no other")  # fmt: skip
    add("--max_new_tokens", type=int, metavar="N", help="of an answer (default: 256)")
    add("--temperature", type=float, metavar="X",
        help="of the draws (default: 0: no draws, so that only the weights differ)")  # fmt: skip
    add("--top_p", type=float, metavar="X", help="draw from the likeliest tokens only (default: 1)")
    add("--precision", help="auto, fp32, bf16 or fp16: of the arithmetic")
    add_shared(chat, "chat_template", "chat_template_kwargs", "trust_remote_code", "json", seed="0")
