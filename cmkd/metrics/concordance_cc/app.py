"""The Space's page: a table to fill in and the coefficient of it."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget

if __name__ == "__main__":
    launch_gradio_widget(evaluate.load(str(Path(__file__).with_name("concordance_cc.py"))))
