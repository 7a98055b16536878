"""Token loaders of other libraries, for `data_loading.py`: each returns windows of one concatenated row.

Only OLMo-core's windows have document lengths. A peer is built from all tokens (uint16) in a folder of its own and is
then an endless iterator of micro-batches: a tensor int64 (rows, length), or several. Building is not measured.
"""

import importlib.util
import itertools
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

Tokens = npt.NDArray[np.uint16]
Build = Callable[[Tokens, Path, int, int], Iterator[Any]]


def plain_memory_map(tokens: Tokens, folder: Path, rows: int, length: int) -> Iterator[Any]:
    """Yield windows at random offsets of a memory map, and their next tokens."""
    path = folder / "tokens.bin"
    tokens.tofile(path)
    data = np.memmap(path, np.uint16, "r")
    while True:
        starts = torch.randint(len(data) - length, (rows,)).tolist()
        inputs = [torch.from_numpy(data[start : start + length].astype(np.int64)) for start in starts]
        targets = [torch.from_numpy(data[start + 1 : start + 1 + length].astype(np.int64)) for start in starts]
        yield torch.stack(inputs), torch.stack(targets)


def _table(tokens: Tokens, folder: Path, length: int) -> Any:
    """Return rows as a `datasets` table on disk, in the arrow format."""
    from datasets import Dataset, Features, Sequence, Value, load_from_disk
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    whole = tokens[: len(tokens) // length * length].reshape(-1, length)
    features = Features({"input_ids": Sequence(Value("uint16"), length=length)})
    Dataset.from_dict({"input_ids": list(whole)}, features=features).save_to_disk(folder / "table")
    return load_from_disk(str(folder / "table"))


def _batches(data: Any, rows: int, **options: Any) -> Iterator[Any]:
    """Yield micro-batches, epoch after epoch."""
    while True:
        for batch in DataLoader(data, batch_size=rows, drop_last=True, **options):
            yield batch["input_ids"] if isinstance(batch, dict) else batch


def datasets_map(tokens: Tokens, folder: Path, rows: int, length: int) -> Iterator[Any]:
    """Yield rows of the table in the random order of torch's sampler."""
    yield from _batches(_table(tokens, folder, length).with_format("torch"), rows, shuffle=True)


def datasets_iterable(tokens: Tokens, folder: Path, rows: int, length: int) -> Iterator[Any]:
    """Yield rows of the table, streamed through a shuffle buffer."""
    table = _table(tokens, folder, length).to_iterable_dataset(num_shards=8)
    yield from _batches(table.shuffle(seed=0, buffer_size=1_000).with_format("torch"), rows)


def mosaicml_streaming(tokens: Tokens, folder: Path, rows: int, length: int) -> Iterator[Any]:
    """Yield rows of local MDS shards, shuffled by the library's default."""
    _stand_in_for_torchvision()
    from streaming import MDSWriter, StreamingDataset

    class RowsOfTokens(StreamingDataset):
        def __getitem__(self, at: int) -> torch.Tensor:
            values = np.frombuffer(super().__getitem__(at)["tokens"], np.uint16)
            return torch.from_numpy(values.astype(np.int64))

    with MDSWriter(out=str(folder / "mds"), columns={"tokens": "bytes"}) as writer:
        for start in range(0, len(tokens) - length, length):
            writer.write({"tokens": tokens[start : start + length].tobytes()})
    yield from _batches(RowsOfTokens(local=str(folder / "mds"), shuffle=True, batch_size=rows), rows)


def _stand_in_for_torchvision() -> None:
    """Let `streaming` import without torchvision, which it needs for image data sets only."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name in ("torchvision", "torchvision.datasets", "torchvision.transforms"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
        sys.modules["torchvision.transforms.functional"] = types.ModuleType("torchvision.transforms.functional")
        sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]


def litdata(tokens: Tokens, folder: Path, rows: int, length: int) -> Iterator[Any]:
    """Yield shuffled rows of local chunks from the library's own loader."""
    warnings.simplefilter("ignore")
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
    from litdata.streaming.writer import BinaryWriter

    (folder / "litdata").mkdir()
    writer = BinaryWriter(str(folder / "litdata"), chunk_bytes="64MB", item_loader=TokensLoader(block_size=length))
    whole = torch.from_numpy(tokens[: len(tokens) // length * length].astype(np.int32)).view(-1, length)
    for number, row in enumerate(whole):
        writer.add_item(number, row)
    writer.done()
    writer.merge()
    data = StreamingDataset(
        str(folder / "litdata"), item_loader=TokensLoader(block_size=length), shuffle=True, drop_last=True
    )
    while True:
        yield from StreamingDataLoader(data, batch_size=rows, num_workers=0)


def olmo_core(tokens: Tokens, folder: Path, rows: int, length: int) -> Iterator[Any]:
    """Yield rows of a memory map with the lengths of their documents, found by their EOS tokens.

    Its four threads are left out: with them it gives a quarter of the tokens a second here.
    """
    _stand_in_for_cached_path()
    from olmo_core.data import DataCollator, NumpyFSLDataLoader, NumpyFSLDataset

    tokens.tofile(folder / "tokens.npy")  # without a header, in spite of its name
    end, work_dir = int(tokens[-1]), folder / "olmo"
    data = NumpyFSLDataset(
        folder / "tokens.npy", sequence_length=length, pad_token_id=end, eos_token_id=end, vocab_size=2**16,
        generate_doc_lengths=True,
    )  # fmt: skip
    data.work_dir = work_dir
    data.prepare()
    collator = DataCollator(pad_token_id=end)
    loader = NumpyFSLDataLoader(
        data, collator=collator, global_batch_size=rows * length, work_dir=work_dir, num_threads=0
    )
    for epoch in itertools.count(1):
        loader.reshuffle(epoch, in_memory=True)
        yield from loader
        loader.reset()


def _stand_in_for_cached_path() -> None:
    """Let `olmo_core` import without cached-path, which it needs for remote files only."""
    if importlib.util.find_spec("cached_path") is None:
        package, schemes = types.ModuleType("cached_path"), types.ModuleType("cached_path.schemes")
        package.cached_path = schemes.add_scheme_client = None  # type: ignore[attr-defined]
        client = type("Client", (), {"recoverable_errors": ()})
        schemes.S3Client = schemes.SchemeClient = client  # type: ignore[attr-defined]
        sys.modules |= {"cached_path": package, "cached_path.schemes": schemes}


PEERS: dict[str, Build] = {
    "memory map": plain_memory_map,
    "datasets": datasets_map,
    "datasets, iterable": datasets_iterable,
    "mosaicml-streaming": mosaicml_streaming,
    "litdata": litdata,
    "OLMo-core": olmo_core,
}
