"""The command that scores whatever sound people have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

Sources = Annotated[
    list[str], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE ...", help_behavior_hint="(one or more)")
]
Tiers = Annotated[
    tuple[str, ...], tyro.conf.arg(metavar="STR ...", help_behavior_hint="(default: the only one of each file)")
]


def predict(
    sources: Sources,
    model: str,
    output: Path,
    revision: str | None = None,
    channel: str = "mean",
    window: float | None = None,
    hop: float | None = None,
    tier: Tiers = (),
    timeline: bool = False,
    embeddings: bool = False,
    format: Literal["parquet", "csv", "jsonl"] = "parquet",
    labels: Literal["audacity", "elan", "textgrid"] | None = None,
    summary: bool = True,
    overwrite: bool = False,
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32",
    device: str | None = None,
    compile: bool = False,
    runtime: Literal["torch", "onnx"] = "torch",
    batch_seconds: float | None = None,
    readers: int | None = None,
    engine: Literal["plain", "ray"] = "plain",
    address: str | None = None,
    actor_cpus: int | None = None,
) -> None:
    """Scores sound: a row for each file and channel, in OUTPUT/scores. The same command goes on where it was stopped.

        cmkd predict calls --model runs/demo --output scores
        cmkd predict 'podcasts/**/*.mp3' --model user/cmkd-student --output scores --timeline --labels audacity
        cmkd predict s3://bucket/calls --model user/cmkd-student --output scores --channel each --format csv
        find . -name '*.m4a' | cmkd predict - --model user/cmkd-student --output scores
        cmkd predict segments.csv turns.rttm words.TextGrid --model user/cmkd-student --output scores
        cmkd predict 'dataset:user/calls?split=test' --model user/cmkd-student --output scores
        accelerate launch -m cmkd predict calls --model user/cmkd-student --output scores

    A source is a file, a folder with all that is in it, a pattern, `-` for a list on standard input, a manifest (.csv,
    .tsv, .jsonl or .parquet with the column audio, and start, end, channel and id where they are needed), a file of
    segments (.rttm, .TextGrid) beside its sound, an address such as s3://, hf:// or gs://, or a data set.

    A file that cannot be scored does not stop the others: OUTPUT/errors.parquet says what is wrong with it, and the
    exit status is 3. Several processes that are started with the same command share the work.

    Args:
        sources: What to score.
        model: The student: the folder of a checkpoint or of a run, a name on the Hub, or an .onnx file.
        output: The folder to write to; the same one goes on where it was stopped.
        revision: The branch, tag or commit of a model on the Hub; null stands for its newest commit.
        channel: What of several channels is scored: mean, each, or the number of one, of which the first is 0.
        window: Seconds of a window; null leaves sound of up to 30 s whole, and cuts longer sound into windows of 10 s.
        hop: Seconds from the start of a window to the next; null stands for the window.
        tier: The tiers of TextGrid files to score.
        timeline: Also write a row for each window, in OUTPUT/timeline.
        embeddings: Also write the embeddings.
        format: What to write: Parquet, and beside it one CSV or JSON lines file.
        labels: Also write the timeline beside each file, as labels for this program.
        summary: Write OUTPUT/summary.html, which shows the timelines.
        overwrite: Begin anew, and remove what an earlier run has written to OUTPUT.
        dtype: The number format of weights and activations; int8 is for ONNX Runtime.
        device: The device, as torch calls it, such as cuda:0; null stands for an accelerator if there is one.
        compile: Have torch compile the layers of the encoder first, which takes up to a minute; on a CPU it needs a C++
            compiler.
        runtime: What computes: torch, or onnx for ONNX Runtime, which is faster on a CPU and gives the same scores to
            1e-5; it needs pip install cmkd[export], which turns the model into a graph the first time.
        batch_seconds: Seconds of sound in a batch, padding included; 0 scores one window at a time. null stands for 240
            on an accelerator and 0 on a CPU.
        readers: Without Ray, processes that read and decode ahead; null stands for one for every four CPUs.
        engine: What shares out the work: plain stands for this process, ray for a Ray cluster.
        address: The address of the Ray cluster; null stands for this machine's, or for a new one if it has none.
        actor_cpus: With Ray and without GPUs, how many CPUs each copy of the model gets; null stands for 1. With GPUs
            each gets one.
    """
    from cmkd.predict.prediction import predict as run

    if not model.endswith(".onnx"):  # which torch and transformers are not needed for
        from transformers.utils import logging

        logging.disable_progress_bar()  # of loading weights
    done = run(
        sources,
        model=model,
        output=output,
        revision=revision,
        channel=int(channel) if channel.isdecimal() else channel,
        window=window,
        hop=hop,
        tiers=tier,
        timeline=timeline,
        embeddings=embeddings,
        format=format,
        labels=labels,
        summary=summary,
        overwrite=overwrite,
        dtype=dtype,
        device=device,
        compile=compile,
        runtime=runtime,
        batch_seconds=batch_seconds,
        readers=readers,
        engine=engine,
        address=address,
        actor_cpus=actor_cpus,
    )
    if done.is_main:
        print(done)
        sys.exit(3 if done.errors else 0)  # no other process of a launch: the launcher stops all as soon as one fails
