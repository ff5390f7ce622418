"""`cmkd export`: a folder that holds a student for ONNX Runtime, complete with what scores speech with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import onnx
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoFeatureExtractor, FeatureExtractionMixin, PreTrainedConfig

import audio_cmkd
import windows_cmkd
from cmkd.atomic import written_whole
from cmkd.export import runtime
from cmkd.export.graph import StudentGraph, metadata_of, speech_input, trace, write_metadata
from cmkd.export.page import write_page
from cmkd.export.smaller import with_half_weights, with_int8_activations, with_int8_weights
from cmkd.export.verify import verify
from cmkd.identity import folder_digest, hub_commit
from configuration_cmkd import CMKDStudentConfig, CMKDTeacherConfig, hub_name
from modeling_cmkd import CMKDPreTrainedModel, CMKDStudentModel, CMKDTeacherModel

FILES = {
    "fp32": "model.onnx",
    "fp16": "model_fp16.onnx",
    "int8": "model_int8.onnx",
    "int8-activations": "model_int8_activations.onnx",
}
"""The file of each precision, named as on the Hub."""

SMALLER = {"fp16": with_half_weights, "int8": with_int8_weights, "int8-activations": with_int8_activations}
"""What makes each smaller form of the graph."""

SMALLER_TOLERANCE = 0.05
"""By which a score in fp16 or int8 may differ from torch's in fp32; what it costs in CCC, docs/export.md measures."""

REQUIREMENTS = ("av>=15.1,<20", "numpy>=1.26,<3", "onnxruntime>=1.23,<2", "soundfile>=0.13,<1", "soxr>=0.5,<2")
"""Of what reads audio and runs the graph: nothing of torch or transformers."""

_LARGEST = 2_000_000_000  # bytes; protobuf holds 2^31 - 1
_EXAMPLE = 1.6  # seconds, of noise


@dataclass(frozen=True)
class Source:
    """A model that is exported.

    Args:
        model (`CMKDPreTrainedModel`): in eval mode, in fp32.
        extractor (`FeatureExtractionMixin`): of its speech.
        identity (`str`): the commit on the Hub, or a digest of the folder.
        name (`str`): on the Hub; "" of a folder.
        card (`str`, *optional*): the text of its model card.
        licence (`str`, *optional*): what the card says of it.
    """

    model: CMKDPreTrainedModel
    extractor: FeatureExtractionMixin
    identity: str
    name: str
    card: str | None
    licence: str | None


@dataclass(frozen=True)
class Exported:
    """A graph that was written.

    Args:
        path (`Path`): its file.
        precision (`str`): a key of `FILES`.
        size (`int`): bytes.
        difference (`float`): the largest difference of a score from torch's in fp32, over the utterances of the check.
    """

    path: Path
    precision: str
    size: int
    difference: float

    def __str__(self) -> str:
        return f"{self.path}: {self.precision}, {self.size / 1e6:.1f} MB, at most {self.difference:.1e} from torch"


def load_source(name_or_path: str, revision: str | None = None) -> Source:
    """Loads a student, or a teacher that only hears, with all that a graph says about it.

    Args:
        name_or_path: a folder that `save_pretrained` wrote, or a name on the Hub.
        revision: branch, tag or commit on the Hub.

    Raises:
        ValueError: it is something else, or also reads a transcript; a revision is given for a folder.
        OSError: there is no such model.
    """
    folder = Path(name_or_path)
    if folder.is_dir() and revision is not None:
        raise ValueError(
            f"revision={revision!r}, but {name_or_path!r} is a folder, which has no revisions: leave it out."
        )
    fields, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision)
    classes: dict[object, type[CMKDPreTrainedModel]] = {
        CMKDStudentConfig.model_type: CMKDStudentModel,
        CMKDTeacherConfig.model_type: CMKDTeacherModel,
    }
    kind = fields.get("model_type")
    if kind is None and folder.is_dir():
        raise ValueError(
            f"{name_or_path} has no config.json with a model_type: name the folder of a checkpoint; in that of a run "
            "it is student."
        )
    if kind not in classes:
        raise ValueError(f"{name_or_path} is a {kind!r} model: only students and teachers of CMKD are exported.")
    if not folder.is_dir():
        revision = hub_commit(name_or_path, revision)
    model = classes[kind].from_pretrained(name_or_path, revision=revision, dtype=torch.float32).eval()
    if model.text_encoder is not None or model.speech_encoder is None:
        raise ValueError(
            f"{name_or_path} is a teacher that reads a transcript, which a graph from speech to scores does not have. "
            "Export the student."
        )
    card = _card(name_or_path, revision)
    return Source(
        model=model,
        extractor=AutoFeatureExtractor.from_pretrained(name_or_path, revision=revision),
        identity=folder_digest(folder) if revision is None else revision,
        name=hub_name(name_or_path),
        card=None if card is None else str(card),
        licence=None if card is None else card.data.to_dict().get("license"),
    )


def export_folder(
    name_or_path: str,
    folder: Path,
    precisions: tuple[str, ...] = (),
    revision: str | None = None,
    page: bool = False,
    onnxruntime_web: Path | None = None,
    report: Callable[[str], object] = print,
) -> list[Exported]:
    """Writes a folder that scores speech with ONNX Runtime, and needs neither torch nor this package.

    Every graph is compared with torch for utterances of ten lengths, and these alone with padded batches in two
    orders, before its file appears.

    Args:
        name_or_path: the student, a folder or a name on the Hub.
        folder: the folder to write; what else is in it stays.
        precisions: "fp16", "int8" and "int8-activations", in addition to fp32.
        revision: branch, tag or commit on the Hub.
        page: also write a page, with the smallest of the graphs: see `cmkd.export.page`.
        onnxruntime_web: for the page, the file of its npm package; None: npm fetches it.
        report: takes a line for each file.

    Returns:
        The graphs, fp32 first.

    Raises:
        BakedInError: the graph is right for some utterances only; nothing is written of it.
        ValueError: the model cannot be exported.
        OSError: there is no such model, or the folder cannot be written.
    """
    unknown = [precision for precision in precisions if precision not in FILES]
    if unknown:
        raise ValueError(f"precisions={precisions!r}: must be of {', '.join(FILES)}.")
    source = load_source(name_or_path, revision)
    size = sum(parameter.numel() * 4 for parameter in source.model.parameters())
    if size > _LARGEST:
        raise ValueError(
            f"{name_or_path} has weights of {size / 1e9:.1f} GB, but an ONNX file holds at most 2: export a student "
            "with a smaller encoder."
        )
    graph = StudentGraph(source.model, speech_input(source.model, source.extractor)).eval()
    samples = round(_EXAMPLE * graph.speech.sampling_rate)
    length = samples if graph.speech.log_mel is None else samples // graph.speech.log_mel["hop_samples"]
    model, doubts = trace(graph, graph.example(2, length), graph.speech.name)
    about = {
        "model": source.name,
        "identity": source.identity,
        "licence": source.licence,
        "card": source.card,
    }
    write_metadata(model, metadata_of(graph, about))
    written = [_written(model, folder, "fp32", verify(graph, model, doubts))]
    report(str(written[-1]))
    for precision in (name for name in SMALLER if name in precisions):
        smaller = SMALLER[precision](model)
        written.append(_written(smaller, folder, precision, verify(graph, smaller, tolerance=SMALLER_TOLERANCE)))
        report(str(written[-1]))
    _write_runtime(folder)
    if page:
        write_page(min(written, key=lambda graph: graph.size).path, folder, onnxruntime_web, report=report)
    return written


def _written(model: onnx.ModelProto, folder: Path, precision: str, difference: float) -> Exported:
    path = folder / FILES[precision]
    write_metadata(model, {"precision": precision})
    onnx.checker.check_model(model)
    with written_whole(path) as unfinished:
        unfinished.write_bytes(model.SerializeToString())
    return Exported(path, precision, path.stat().st_size, difference)


def _write_runtime(folder: Path) -> None:
    """What scores speech with the graphs, and the packages that it needs."""
    modules = {"onnx_cmkd.py": runtime, "windows_cmkd.py": windows_cmkd, "audio_cmkd.py": audio_cmkd}
    for name, module in modules.items():
        with written_whole(folder / name) as unfinished:
            copyfile(str(module.__file__), unfinished)
    with written_whole(folder / "requirements.txt") as unfinished:
        unfinished.write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")


def _card(name_or_path: str, revision: str | None) -> ModelCard | None:
    if Path(name_or_path).is_dir():
        path = Path(name_or_path, "README.md")
        return ModelCard.load(path) if path.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return ModelCard.load(hf_hub_download(name_or_path, "README.md", revision=revision))
    except EntryNotFoundError:
        return None
