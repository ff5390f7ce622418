"""The documentation site: `make docs` builds it into build/docs, with warnings as errors."""

import contextlib
import io
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that the reference is that of this checkout

import cmkd  # noqa: E402
from cmkd.command_line import shown  # noqa: E402
from cmkd.commands import GROUPS, main  # noqa: E402
from cmkd.corpora import CORPORA  # noqa: E402
from cmkd.corpora.settings import REQUIRED, corpus_settings  # noqa: E402
from cmkd.runs.recipe import Recipe  # noqa: E402

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
    """Writes what the commands say of themselves, and all settings, into reference/command_line.md."""
    if docname != "reference/command_line":
        return
    os.environ["COLUMNS"] = "100"  # how wide help is
    parts = []
    for group, names in GROUPS.items():
        parts.append(f"## {group}")
        for name in names:
            shown_help = io.StringIO()
            with contextlib.redirect_stdout(shown_help), contextlib.suppress(SystemExit):
                main([name, "--help"])
            about = shown_help.getvalue()
            if name in ("train", "crossval"):
                about = about.partition("╭")[0]  # the settings have a table of their own
            parts.append(f"### cmkd {name}\n\n```text\n{about.strip()}\n```")
    recipe = {
        name: ("required" if field.is_required() else shown(field.get_default()), field.description)
        for name, field in Recipe.model_fields.items()
    }
    corpora = []
    for name in CORPORA:
        settings = {
            f"corpus.{key}": (
                "required" if setting.default is REQUIRED else shown(setting.default),
                setting.description,
            )
            for key, setting in corpus_settings(name).items()
        }
        corpora.append(f"### {name}\n\n{table(settings)}")
    for mark, text in (
        ("commands", "\n\n".join(parts)),
        ("settings", table(recipe)),
        ("corpora", "\n\n".join(corpora)),
    ):
        source[0] = source[0].replace(f"{{{{ {mark} }}}}", text)


def table(settings) -> str:
    """By name the default and the description of each setting, as a table in Markdown."""
    rows = [
        f"| `{name}` | {default if default == 'required' else f'`{default}`'} | {description.replace('|', '&#124;')} |"
        for name, (default, description) in settings.items()
    ]
    return "\n".join(["| setting | default | |", "|---|---|---|", *rows])


def as_code(app, what, name, obj, options, lines: list[str]) -> None:
    """Names in docstrings, written as transformers does, [`CMKDTrainer`], become code without the brackets."""
    lines[:] = [re.sub(r"\[(`[^`]+`)\]", r"\1", line) for line in lines]


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_code)
    app.connect("source-read", entitle)
    app.connect("source-read", fill)
