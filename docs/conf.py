"""The documentation site: `make docs` builds it into build/docs, with warnings as errors."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that the reference is that of this checkout

import cmkd  # noqa: E402

project = "CMKD"
author = "The CMKD contributors"
project_copyright = "The CMKD contributors, Apache-2.0"
version = release = cmkd.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
default_role = "code"  # what single backticks mean in our docstrings, which transformers' style writes as Markdown

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"CMKD {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False


TITLES = {
    "results/statistics": "Simulated tests and intervals",
    "results/spoken_emobank_rows/tables": "The tables of SpokenEmoBank",
}
"""Of pages that a program writes as a part of something, without a title."""


def entitle(app, docname: str, source: list[str]) -> None:
    if docname in TITLES:
        source[0] = f"# {TITLES[docname]}\n\n{source[0]}"


def fill(app, docname: str, source: list[str]) -> None:
    """Writes what the commands say of themselves, and the settings of recipes, into reference/command_line.md."""
    if docname != "reference/command_line":
        return
    from cmkd.cli import app as commands
    from typer.main import get_command

    from cmkd.runs.recipe import Recipe

    group = get_command(commands)
    parts = []
    for name, command in group.commands.items():
        context = command.context_class(command, info_name=f"cmkd {name}")
        parts.append(f"## cmkd {name}\n\n```text\n{command.get_help(context).strip()}\n```")
    settings = ["| setting | default | |", "|---|---|---|"]
    for name, field in Recipe.model_fields.items():
        default = "required" if field.is_required() else f"`{field.get_default()}`"
        settings.append(f"| `{name}` | {default} | {(field.description or '').replace('|', '&#124;')} |")
    source[0] = source[0].replace("{{ commands }}", "\n\n".join(parts)).replace("{{ settings }}", "\n".join(settings))


def as_code(app, what, name, obj, options, lines: list[str]) -> None:
    """Names in docstrings, written as transformers does, [`CMKDTrainer`], become code without the brackets."""
    lines[:] = [re.sub(r"\[(`[^`]+`)\]", r"\1", line) for line in lines]


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_code)
    app.connect("source-read", entitle)
    app.connect("source-read", fill)
