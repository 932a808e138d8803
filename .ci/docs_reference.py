"""A hook of mkdocs: the pages of the reference, made from the code."""

import os

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from nnunet_ext.cli.main import COMMANDS, build_parser
from nnunet_ext.methods import METHODS, Method
from nnunet_ext.planning.describe import describe_options, kinds_text, short_json


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each method and one for the commands."""
    os.environ["COLUMNS"] = "100"  # where argparse wraps
    for name, method in METHODS.items():
        files.append(File.generated(config, f"reference/{name}.md", content=_method(method)))
    files.append(File.generated(config, "reference/commands.md", content=_commands()))
    return files


def _method(method: Method) -> str:
    lines = [
        f"# Options of {method.title}\n",
        f"`nnunet_ext plan DATASET --method {method.name} --name PLANS --set KEY=VALUE` sets them; "
        f"`-tr {method.trainer}` trains with them.\n",
    ]
    for title, options in describe_options(method).items():
        lines += [f"## {title.capitalize()}\n", "| option | default | type | what it is |", "|---|---|---|---|"]
        for option in options:
            cells = (
                f"`{option['name']}`",
                f"`{short_json(option['default'])}`",
                kinds_text(option),
                option["help"] or "",
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    lines += ["## Presets\n", "| `--preset` | sets |", "|---|---|"]
    for preset, settings in method.preset_settings().items():
        lines.append(
            f"| `{method.name}/{preset}` | " + ", ".join(f"`{k}={short_json(v)}`" for k, v in settings.items()) + " |"
        )
    return "\n".join(lines) + "\n"


def _commands() -> str:
    lines = ["# Commands\n"]
    for name in COMMANDS:
        parser = build_parser([name])
        (choices,) = (action.choices for action in parser._actions if name in (action.choices or {}))
        lines += [f"## nnunet_ext {name}\n", f"```text\n{choices[name].format_help().rstrip()}\n```\n"]
    return "\n".join(lines)
