"""The output of a network's frozen parts, computed once per utterance and kept on the disk.

A frozen part gives the same output for an utterance in every epoch, stage and run, so it runs once, on that utterance
alone. The outputs are kept in a folder whose name is a digest of everything that they depend on: the weights and
configuration of the part, the code that runs it and its settings. `cmkd.features.cache` manages these folders.

A folder holds safetensors files of about `CHUNK` utterances each, which are mapped into memory, not read. The name of a
file is a digest of its utterances' keys: the audio (path, size and modification time, or content) or the tokens. Where
one file ends and the next begins depends on the utterances there and on nothing before them, so that splits, folds and
versions of a corpus that share a sequence of utterances also share its files.

A file appears whole or not at all, and carries a checksum: one that is truncated or damaged is detected, named and
computed again. So several processes and several jobs may fill one folder at once, and what was stored before a job was
stopped, or before the disk was full, is used by the next.
"""

import bisect
import functools
import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from cmkd.atomic import written_whole
from cmkd.features.cache import StoredDtype, code_version, hold, stored_folders
from cmkd.features.stretch import stretch_of
from cmkd.processes import READING_TIMEOUT, wait_for_all
from cmkd.training.out_of_memory import is_out_of_memory

CHUNK = 32
"""Utterances per file on average, and at most twice as many: 40 MB for HuBERT Large in fp32."""


class StoredFeatures(Sequence):
    """Arrays (length, ...) in fp32, one per utterance, from files that [`frozen_features`] wrote.

    Args:
        paths: Paths of the files.
        starts: The number of the first utterance of each file, counted from 0, and at the end the number of utterances.
        held: An object that keeps the files from being removed for as long as it lives, see
            `cmkd.features.cache.hold`.
    """

    def __init__(self, paths: Sequence[Path], starts: Sequence[int], held: Any = None):
        self.paths = paths
        self.starts = starts
        self._held = held
        self._open: dict[int, tuple[Any, list[int]]] = {}

    def __reduce__(self) -> tuple[type["StoredFeatures"], tuple[Any, ...]]:
        return StoredFeatures, (self.paths, self.starts)  # workers of a data loader map the files themselves

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> torch.Tensor:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"utterance {index} of {len(self)}")
        chunk = bisect.bisect_right(self.starts, index) - 1
        if chunk not in self._open:
            file = safe_open(self.paths[chunk], "pt")
            self._open[chunk] = (file.get_slice("values"), [0, *file.get_tensor("ends").tolist()])
        values, ends = self._open[chunk]
        row = index - self.starts[chunk]
        return values[ends[row] : ends[row + 1]].float()


@dataclass(frozen=True)
class FrozenPart:
    """A part of a network whose weights do not change.

    Attributes:
        encoder: The speech or text encoder of a CMKD model, whose weights and configuration the output depends on.
        run: A function that takes a batch of one and returns its features (1, length, ...) and their mask.
        settings: Whatever else the output depends on; its text must be the same whenever its meaning is the same.
        name (`str`): What it is called in the folder's name and beside the progress bar.
    """

    encoder: Any
    run: Callable
    settings: Any
    name: str


@dataclass(frozen=True)
class Storage:
    """Where and how the output of frozen parts is stored.

    Attributes:
        cache_dir (`Path`): The folder that holds a folder for each part.
        dtype (`str`, *optional*, defaults to `"float32"`): The format of the stored numbers; "bfloat16" takes half the
            space.
        limit_gb (`float`, *optional*): How large `cache_dir` may grow, in units of 10^9 bytes, not counting what other
            code has stored there; None means without limit.
        workers (`int`, *optional*, defaults to 0): The number of processes that compute the inputs while the part runs.
    """

    cache_dir: Path
    dtype: StoredDtype = "float32"
    limit_gb: float | None = None
    workers: int = 0


def frozen_features(
    rows: Dataset, inputs: Sequence, keys: Sequence, part: FrozenPart, storage: Storage
) -> StoredFeatures | None:
    """The output of a frozen part for every utterance, read from the disk or else computed now.

    All processes of a launch must call this function; each computes its share.

    Args:
        rows (`Dataset`): A split of a corpus; its ids and durations are used.
        inputs: The part's inputs, one per row.
        keys: What each utterance's input depends on, one per row; the text of a key must be the same whenever its
            meaning is the same.
        part (`FrozenPart`): The part that computes the output.
        storage (`Storage`): Where and how the output is stored.

    Returns:
        The features; None if they would not fit into `limit_gb`, estimated from the longest utterance.

    Raises:
        ValueError: the part refuses an utterance, which the message names.
        OSError: the disk is full; what was stored until then stays.
        MemoryError: an utterance is too long; the message names it.
    """
    folder = storage.cache_dir / f"{part.name}-{_digest(part.encoder, (part.settings, storage.dtype))}"
    starts, digests = cut_into_files(keys)
    paths = [folder / f"{digest}.safetensors" for digest in digests]
    state = PartialState()

    def compute(index: int, values: torch.Tensor) -> torch.Tensor:
        device = next(part.encoder.parameters()).device
        try:
            with torch.no_grad():
                output = part.run(values[None].to(device))[0][0]
                return output.to(getattr(torch, storage.dtype)).cpu().contiguous()
        except ValueError as error:
            raise ValueError(f"Utterance {rows[index]['id']!r}: {error}") from error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"Out of memory at utterance {rows[index]['id']!r} of {rows[index]['duration']:.1f} s, which runs "
                "through the frozen layers by itself: cut it or leave it out."
            ) from error

    if storage.limit_gb is not None:
        fits: list[bool | None] = [None]
        if state.is_main_process:
            longest = int(np.argmax(rows["duration"]))
            size = compute(longest, inputs[longest]).nbytes / rows["duration"][longest] * sum(rows["duration"])
            fits = [_fits(storage.cache_dir, paths, size, storage.limit_gb)]
        wait_for_all(f"estimate the size of {part.name}")
        if not broadcast_object_list(fits)[0]:
            return None
    about = {
        "part": part.name,
        "encoder": part.encoder.encoder.config._name_or_path,
        "dtype": storage.dtype,
        "settings": repr(part.settings),
    }
    held = hold(folder, about)
    mine = range(state.process_index, len(paths), state.num_processes)
    missing = [chunk for chunk in mine if not _is_whole(paths[chunk])]
    order = [index for chunk in missing for index in range(starts[chunk], starts[chunk + 1])]
    options = {
        "num_workers": min(storage.workers, len(order)),
        "timeout": READING_TIMEOUT if storage.workers and order else 0,
        "generator": torch.Generator(),
    }  # not the one that training draws from
    ahead = iter(DataLoader(Subset(inputs, order), batch_size=None, **options))  # type: ignore[arg-type]
    with tqdm(total=len(order), desc=f"  {part.name}", unit=" utterances", disable=None) as progress:
        for chunk in missing:
            features = []
            for index in range(starts[chunk], starts[chunk + 1]):
                features.append(compute(index, next(ahead)))
                progress.update()
            _write(paths[chunk], features)
    wait_for_all(f"compute its share of {part.name}")
    return StoredFeatures(paths, starts, held)


def cut_into_files(keys: Sequence) -> tuple[list[int], list[str]]:
    """Cuts utterances into files: where each begins, with the number of utterances at the end, and its keys' digest.

    A file ends with an utterance whose own digest is a multiple of `CHUNK`, or after 2 `CHUNK` utterances.

    >>> keys = range(1000)
    >>> whole, part = cut_into_files(keys)[1], cut_into_files(keys[300:])[1]
    >>> len(set(part) - set(whole))  # only the first file differs
    1
    """
    starts, digests, content = [0], [], hashlib.sha256()
    for index, key in enumerate(keys):
        own = hashlib.sha256(repr(key).encode()).digest()
        content.update(own)
        is_end = int.from_bytes(own[:8], "big") % CHUNK == 0 or index + 1 - starts[-1] == 2 * CHUNK
        if is_end or index + 1 == len(keys):
            starts.append(index + 1)
            digests.append(content.hexdigest()[:24])
            content = hashlib.sha256()
    return starts, digests


def audio_keys(rows: Dataset) -> list[Any]:
    """What identifies the audio of each row: its file, and the stretch and channel unless it is the whole file."""
    columns = [name for name in ("audio", "start", "end", "channel") if name in rows.column_names]
    return [_audio_key(row) for row in rows.select_columns(columns)]


def _write(path: Path, features: Sequence[torch.Tensor]) -> None:
    ends = torch.tensor([len(of_one) for of_one in features]).cumsum(0)
    tensors = {"values": torch.cat(list(features)), "ends": ends}
    size = sum(tensor.nbytes for tensor in tensors.values())
    try:
        with written_whole(path) as unfinished:
            save_file(tensors, unfinished, {"crc32": str(_checksum(tensors))})
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(path.parent).free
        if free > 2 * size:
            raise
        raise OSError(
            f"The disk is full: {path} of {size / 1e6:.0f} MB cannot be written ({free / 1e6:.0f} MB are free). What "
            "has been stored will be used. Free some space, store in bfloat16 with --cache_dtype bfloat16, or do "
            "without a cache with --cache_limit_gb 0."
        ) from error


def _is_whole(path: Path) -> bool:
    """Whether a file exists and is undamaged; a damaged one is reported by name."""
    if not path.exists():
        return False
    status = path.stat()
    damage = _damage(path, status.st_size, status.st_mtime_ns)
    if damage is None:
        return True
    tqdm.write(f"  {path} is damaged ({damage}) and will be computed anew")
    return False


@functools.cache  # once per process, unless the file changes
def _damage(path: Path, size: int, changed: int) -> str | None:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("values", "ends")}
            return None if file.metadata()["crc32"] == str(_checksum(tensors)) else "its checksum is wrong"
    except (SafetensorError, KeyError, TypeError) as error:
        return str(error)


def _checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(_bytes(tensors[name]), checksum)
    return checksum


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _fits(cache_dir: Path, paths: Sequence[Path], size: float, limit_gb: float) -> bool:
    """Whether there is room besides what this code has stored; what other code has stored is not counted."""
    folders = stored_folders(cache_dir)
    own = set(paths)
    others = sum(_size_beside(folder.path, own) for folder in folders if not folder.is_of_other_code)
    if others + size <= limit_gb * 1e9:
        return True
    useless = sum(folder.size for folder in folders if folder.is_of_other_code)
    tqdm.write(
        f"  {paths[0].parent.name} would take {size / 1e9:.2f} GB, beside {others / 1e9:.2f} GB that are there: more "
        f"than cache_limit_gb={limit_gb:g}. It is computed anew in every epoch instead, which takes longer."
    )
    if useless:
        tqdm.write(
            f"  (Another {useless / 1e9:.2f} GB there were stored by other code; they are not counted, cannot be used, "
            f"and can be removed: cmkd cache {cache_dir} --other_code --prune)"
        )
    return False


def _size_beside(folder: Path, paths: set[Path]) -> int:
    """The bytes of the features in a folder that are not in `paths`; none in one that is removed meanwhile."""
    try:
        return sum(file.stat().st_size for file in folder.glob("*.safetensors") if file not in paths)
    except FileNotFoundError:
        return 0


def _digest(encoder: Any, settings: Any) -> str:
    config = {key: value for key, value in encoder.encoder.config.to_dict().items() if key != "_name_or_path"}
    sorted_config = json.dumps(config, sort_keys=True, default=repr)  # a checkpoint has its fields in another order
    digest = hashlib.sha256(repr((settings, sorted_config, code_version())).encode())
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    for key, tensor in sorted(encoder.state_dict().items()):
        if key not in trained:  # layers above the frozen part, and how much each layer counts
            digest.update(key.encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def _audio_key(row: Mapping[str, Any]) -> Any:
    stretch = stretch_of(row)
    file = _file_key(row["audio"])
    return file if stretch == stretch_of({}) else (file, *stretch.values())


def _file_key(cell: Mapping[str, Any]) -> Any:
    if cell["bytes"] is not None:
        return hashlib.sha256(cell["bytes"]).hexdigest()
    status = Path(cell["path"]).stat()
    return cell["path"], status.st_size, status.st_mtime_ns
