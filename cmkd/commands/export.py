"""Students for other engines than torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]


def export(
    model: Model,
    folder: Folder,
    fp16: bool = False,
    int8: bool = False,
    int8_activations: bool = False,
    page: bool = False,
    revision: str | None = None,
    onnxruntime_web: Path | None = None,
) -> None:
    """Writes a student for ONNX Runtime: scores and embeddings without torch and without transformers.

        cmkd export runs/demo exported
        cmkd export user/student exported --int8 --fp16
        cmkd export runs/demo site --page

    FOLDER gets model.onnx, which takes any number of utterances of any length, and three Python files that score sound
    files with it: `pip install -r exported/requirements.txt`, then `python exported/onnx_cmkd.py exported/model.onnx
    speech.wav`. Every graph is compared with torch at ten lengths, and in padded batches, before its file appears.

    Args:
        model: A student, or a teacher that only hears: the folder of a checkpoint or of a run, or a name on the Hub.
        folder: The folder to write; what else is in it stays.
        fp16: Also write model_fp16.onnx, whose weights take half the space.
        int8: Also write model_int8.onnx, whose matrix products have weights of 8 bits: it takes 40 to 45 % of the space
            with small encoders, and less with large ones; activations stay in fp32, so that an utterance scores the
            same in any batch.
        int8_activations: Also write model_int8_activations.onnx, which multiplies whole numbers, one utterance at a
            time; faster where the processor has VNNI.
        page: Also write a page, index.html, that scores files and the microphone in the browser, with the smallest of
            the graphs; npm fetches what runs it there.
        revision: Branch, tag or commit of the model on the Hub.
        onnxruntime_web: With --page, the file that `npm pack` fetched, for machines without npm.
    """
    from transformers.utils import logging

    from audio_cmkd import import_package

    for package in ("onnx", "onnxruntime"):
        import_package(package, "writes and checks the graph")
    from cmkd.export.folder import export_folder
    from cmkd.runs.answers import locate_checkpoint

    logging.disable_progress_bar()
    asked = {"fp16": fp16, "int8": int8, "int8-activations": int8_activations}
    precisions = tuple(name for name, is_asked in asked.items() if is_asked)
    if onnxruntime_web is not None and not page:
        raise ValueError("--onnxruntime_web is for the page: add --page, or leave it out.")
    found = locate_checkpoint(model, revision)
    export_folder(found.source, folder, precisions, found.revision, page, onnxruntime_web)
