"""Carries two things of the repository's root into the wheel's one package; everything else is in pyproject.toml.

`hub_cards/` and `train_distill.py` belong to the root, where a reader of the repository looks for them. In
site-packages such names could be another package's, so a wheel has them as `cmkd/hub_cards` and
`cmkd/train_distill.py`. Neither setuptools' `package-dir` (it maps folders only) nor links (mypy and pytest would
find one file under two names) do this for both. An editable install copies nothing: `cmkd.places` finds what lies in
the root.
"""

from pathlib import Path
from shutil import copy2

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "cmkd"
        for source in [ROOT / "train_distill.py", *(ROOT / "hub_cards").iterdir()]:
            if source.suffix in (".py", ".md"):
                target = package / source.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                copy2(source, target)


setup(cmdclass={"build_py": BuildPy})
