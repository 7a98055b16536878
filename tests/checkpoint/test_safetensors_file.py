"""Safetensors files restore tensors bit for bit; an incomplete file is refused."""

import hashlib
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pretrain.checkpoint.safetensors_file import MAX_HEADER_BYTES, TensorFiles, TensorShard, write_each, write_tensors
from pretrain.errors import CheckpointError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool]  # fmt: skip


def noise(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of any bits that the format has, NaN and denormal numbers too."""
    count = torch.Size(shape).numel() * torch.tensor([], dtype=dtype).element_size()
    data = torch.randint(2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
    return data.view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "some.safetensors"
    write_tensors(path, {"a": noise(torch.float32, (3, 5)), "b": noise(torch.uint8, (7,))})
    return path


@pytest.mark.slow
@given(
    parts=st.dictionaries(
        st.text(min_size=1, max_size=9).filter(lambda name: name != "__metadata__" and name.isprintable()),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3).map(tuple)),
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_every_format_and_shape_comes_back_to_the_bit(
    parts: dict[str, tuple[torch.dtype, tuple[int, ...]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "file"
    tensors = {name: noise(*part) for name, part in parts.items()}
    digest = write_tensors(path, tensors)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    for found in (dict(TensorFiles([path])), load_file(path)):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            assert bits(found[name]) == bits(tensor)


def test_views_and_parameters_are_written_as_they_read(tmp_path: Path) -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    tensors = {"turned": matrix.T, "part": matrix[:, 1::2], "weight": torch.nn.Parameter(matrix)}
    write_tensors(tmp_path / "file", tensors)
    found = dict(TensorFiles([tmp_path / "file"]))
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert found["turned"].is_contiguous()


def test_an_existing_file_is_never_overwritten(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(FileExistsError):
        write_tensors(file, {"a": torch.zeros(2)})
    assert file.read_bytes() == before


def test_a_format_without_a_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"file cannot hold phase of torch\.complex64\. Try one of F64, F32"):
        write_tensors(tmp_path / "file", {"phase": torch.zeros(2, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())


def test_what_is_no_whole_file_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for size in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"some\.safetensors cannot be read: "):
            dict(TensorFiles([file]))
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(CheckpointError, match=r"cannot be read: "):
            dict(TensorFiles([missing]))


@pytest.mark.parametrize("claimed", [10**12, MAX_HEADER_BYTES + 1, 2**64 - 1])
def test_a_header_that_claims_too_much_is_refused_before_it_is_read(file: Path, claimed: int) -> None:
    file.write_bytes(claimed.to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(CheckpointError, match=rf"declares a header of {claimed:,} bytes; the limit is 100,000,000"):
        dict(TensorFiles([file]))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**12]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]},
        {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]},
        {},
    ],
)
def test_a_header_that_does_not_describe_the_bytes_is_refused(tmp_path: Path, entry: dict[str, object]) -> None:
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    with pytest.raises(CheckpointError, match=r"file cannot be read: "):
        dict(TensorFiles([tmp_path / "file"]))


def test_tensors_are_made_and_read_one_at_a_time(tmp_path: Path) -> None:
    made: list[str] = []

    def value(name: str) -> torch.Tensor:
        made.append(name)
        return torch.full((2, 3), float(len(made)))

    formats = dict.fromkeys("ab", (torch.float32, (2, 3)))
    write_each(tmp_path / "one", formats, value, metadata={"format": "pt"})
    write_tensors(tmp_path / "two", {"c": torch.ones(4, dtype=torch.int64)})
    assert made == ["a", "b"]
    assert b'{"__metadata__":{"format":"pt"}' in (tmp_path / "one").read_bytes()
    files = TensorFiles([tmp_path / "one", tmp_path / "two"])
    assert files.shapes == {"a": (2, 3), "b": (2, 3), "c": (4,)}
    assert torch.equal(files.read("b"), torch.full((2, 3), 2.0))
    files.check_weight("a", torch.Size([2, 3]), "why")
    with pytest.raises(CheckpointError, match=r"one: a has shape \(2, 3\), the model's \(3, 2\)\. why"):
        files.check_weight("a", torch.Size([3, 2]), "why")
    with pytest.raises(CheckpointError, match=r"two: c is of dtype I64, weights are of F64, F32, F16, BF16\."):
        files.check_weight("c", torch.Size([4]), "why")
    with pytest.raises(CheckpointError, match=r"one and one both hold 'a'\."):
        TensorFiles([tmp_path / "one", tmp_path / "one"])


def test_a_format_that_torch_does_not_have_is_refused_when_it_is_read(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F6_E2M3", "shape": [8], "data_offsets": [0, 6]}}).encode()
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + bytes(6))
    with pytest.raises(CheckpointError, match=r"file cannot be read: "):
        dict(TensorFiles([tmp_path / "file"]))


def write_shards(folder: Path, whole: torch.Tensor, *rows: int) -> list[Path]:
    """Write a tensor in blocks of rows, each to a file of its own."""
    paths, start = [], 0
    for number, count in enumerate(rows):
        paths.append(folder / str(number))
        piece = TensorShard(whole[start : start + count], whole.shape, (start, 0))
        write_tensors(paths[-1], {"a": piece} | ({"step": torch.tensor(3.0)} if not number else {}))
        start += count
    return paths


def test_shards_are_read_as_the_full_tensor(tmp_path: Path) -> None:
    whole = torch.randn(7, 3)
    files = TensorFiles(write_shards(tmp_path, whole, 4, 2, 1))
    assert files.shapes == {"a": (7, 3), "step": ()}
    assert torch.equal(files["a"], whole)
    assert {name: float(value.sum()) for name, value in files.items()} == {"a": float(whole.sum()), "step": 3.0}
    files.check_weight("a", torch.Size([7, 3]), "why")


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ((4,), [(0, 2), (0, 2)]),
        ((6,), [(0, 3), (2, 2), (5, 1)]),
        ((2, 4), [((0, 0), (2, 2)), ((0, 1), (2, 2))]),
        ((4, 4), [((0, 0), (4, 2)), ((0, 2), (2, 2)), ((1, 2), (2, 2))]),
    ],
)
def test_overlapping_shards_are_refused_though_their_sizes_add_up(
    tmp_path: Path, shape: tuple[int, ...], blocks: list[tuple[Any, Any]]
) -> None:
    for number, (offset, size) in enumerate(blocks):
        place, extent = ((part,) if isinstance(part, int) else part for part in (offset, size))
        write_tensors(tmp_path / f"{number}", {"w": TensorShard(torch.ones(extent), shape, place)})
    with pytest.raises(CheckpointError, match=r"\d and \d hold overlapping shards of 'w'"):
        TensorFiles([tmp_path / f"{number}" for number in range(len(blocks))])


def test_shards_of_any_grid_are_read(tmp_path: Path) -> None:
    whole, paths = torch.randn(7, 5), []
    for number, (rows, columns) in enumerate(product(((0, 3), (3, 7)), ((0, 2), (2, 4), (4, 5)))):
        values = whole[slice(*rows), slice(*columns)]
        paths.append(tmp_path / f"{number}")
        write_tensors(paths[-1], {"w": TensorShard(values, whole.shape, (rows[0], columns[0]))})
    assert torch.equal(TensorFiles(paths[::-1])["w"], whole)


def test_shards_that_do_not_cover_a_tensor_are_refused(tmp_path: Path) -> None:
    first, second, third = write_shards(tmp_path, torch.randn(7, 3), 4, 2, 1)
    with pytest.raises(CheckpointError, match=r"holds 15 of the 21 numbers of 'a': a file is missing, or one is too"):
        TensorFiles([first, third])
    with pytest.raises(CheckpointError, match=r"holds 27 of the 21 numbers of 'a'"):
        TensorFiles([first, second, third, second])
    write_tensors(tmp_path / "whole", {"a": torch.zeros(7, 3)})
    with pytest.raises(CheckpointError, match=r"whole and 0 both hold 'a'"):
        TensorFiles([first, tmp_path / "whole"])
    for piece, problem in (
        (TensorShard(torch.zeros(3, 3), (8, 3), (4, 0)), r"other and 0 hold shards of 'a' of different full shapes"),
        (TensorShard(torch.zeros(3, 3, dtype=torch.float64), (7, 3), (4, 0)), r"of different full shapes or dtypes"),
        (
            TensorShard(torch.zeros(3, 3), (7, 3), (5, 0)),
            r"other holds a shard of 'a' that extends beyond its full shape",
        ),
    ):
        write_tensors(tmp_path / "other", {"a": piece})
        with pytest.raises(CheckpointError, match=problem):
            TensorFiles([first, tmp_path / "other"])
        (tmp_path / "other").unlink()


@pytest.mark.parametrize(
    "pieces",
    ["{", "[]", '{"a": 3}', '{"a": [[7, 3], [4]]}', '{"a": [[7, 3], [-1, 0]]}', '{"a": [[7, 3, 1], [0, 0, 0]]}',
     '{"b": [[7], [0]]}', '{"a": [["7", 3], [0, 0]]}', "[" * 100_000],
)  # fmt: skip
def test_invalid_metadata_of_shards_is_refused(tmp_path: Path, pieces: str) -> None:
    write_each(
        tmp_path / "file", {"a": (torch.float32, (3, 3))}, lambda name: torch.zeros(3, 3), metadata={"pieces": pieces}
    )
    with pytest.raises(CheckpointError, match=r"file cannot be read: its metadata of shards is invalid"):
        dict(TensorFiles([tmp_path / "file"]))


def test_a_shard_of_a_tensor_larger_than_memory_is_refused(tmp_path: Path) -> None:
    for shape in ((2**40, 2**40), (2**62, 4), (2**100, 2)):
        path = tmp_path / str(shape[0])
        write_tensors(path, {"a": TensorShard(torch.zeros(1, 1), shape, (0, 0))})
        with pytest.raises(CheckpointError, match=r"holds 1 of the|its metadata of shards is invalid"):
            dict(TensorFiles([path]))
