"""The page of the Space: it takes predictions and references as JSON and shows their coefficient."""

import json
from functools import partial
from pathlib import Path

import evaluate


def compute(metric: evaluate.Metric, predictions: str, references: str) -> dict:
    """JSON lists of numbers, or of rows of numbers, null where there is no rating -> what the metric returns."""
    given = [json.loads(text) for text in (predictions, references)]
    if not all(isinstance(values, list) and values for values in given):
        raise ValueError("predictions and references must be lists of at least one entry.")
    return metric.compute(predictions=given[0], references=given[1])


def main() -> None:
    import gradio  # which the Hub installs for a Space

    metric = evaluate.load(str(Path(__file__).with_name("concordance_cc.py")))
    page = gradio.Interface(
        partial(compute, metric),
        [
            gradio.Textbox("[[0.1, 0.5], [0.4, 0.5], [0.9, 0.6]]", label="predictions"),
            gradio.Textbox("[[0.0, 0.4], [0.5, null], [1.0, 0.9]]", label="references"),
        ],
        gradio.JSON(label="concordance_cc"),
        title="Concordance correlation coefficient",
        description="Lists of numbers, or of a row of numbers for each item; null where there is no rating.",
        flagging_mode="never",
        api_name="compute",
    )
    page.launch(show_error=True)


if __name__ == "__main__":
    main()
