"""The page of a Space: speech in; activation, valence and dominance out, by the model that model.json pins."""

import json
from pathlib import Path

import gradio
import pandas
from transformers import pipeline

pinned = json.loads(Path(__file__).with_name("model.json").read_text(encoding="utf-8"))
score = pipeline(model=pinned["model"], revision=pinned["revision"], trust_remote_code=True)


def rate(audio: str | None):
    """The path of a sound file -> both tables: of the whole, and of the beginning and end of every window.

    The last window overlaps the one before. It is shown from where that ends, so that the line never turns back.
    """
    if audio is None:
        raise gradio.Error("Upload or record speech first.")
    try:
        answer = score(audio)
    except ValueError as error:
        raise gradio.Error(str(error).replace(audio, Path(audio).name)) from None
    if answer["silent"]:
        gradio.Warning("This is silence: the scores mean nothing.")
    whole = [[name, round(answer["scores"][name], 3), round(answer["ratings"][name], 2)] for name in answer["scores"]]
    ends = [0.0, *(window["end"] for window in answer["timeline"])]
    timeline = [
        (second, name, value)
        for shown_until, window in zip(ends, answer["timeline"], strict=False)
        for second in (max(shown_until, window["start"]), window["end"])
        for name, value in window["scores"].items()
    ]
    return whole, pandas.DataFrame(timeline, columns=["second", "dimension", "score"])


low, high = score.model.config.label_scale
page = gradio.Interface(
    rate,
    gradio.Audio(type="filepath", label="Speech, of any length"),
    [
        gradio.Dataframe(headers=["", "score, 0 to 1", f"rating, {low:g} to {high:g}"], label="The whole"),
        gradio.LinePlot(x="second", y="score", color="dimension", label="Over time"),
    ],
    title="Activation, valence and dominance of speech",
    description=f"{pinned['model']} at {pinned['revision']}. Its card says what it was trained on and where it fails.",
    flagging_mode="never",
    api_name="rate",
)

if __name__ == "__main__":
    page.launch()
