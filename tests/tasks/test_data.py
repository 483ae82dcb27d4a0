from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from hybridkit.errors import UsageError
from hybridkit.tasks.data import count, first, in_memory, in_order, is_stream, on, size, take

INDICES = torch.tensor([3, 0, 3])


class Squares(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, i):
        return i * i


class Batched(Squares):
    def __getitems__(self, indices):
        return [(torch.tensor(float(i)), {"label": i}) for i in indices]


def test_a_tensor_is_indexed_along_its_first_dimension():
    data = torch.arange(10).reshape(5, 2)
    assert torch.equal(take(data, INDICES), data[[3, 0, 3]])
    assert torch.equal(take(data, [1]), data[1:2])


def test_a_tuple_stays_a_tuple():
    x, y = torch.arange(5.0), torch.arange(5)
    batch = take((x, (y,)), INDICES)
    assert isinstance(batch, tuple)
    assert isinstance(batch[1], tuple)
    assert torch.equal(batch[0], x[INDICES])
    assert torch.equal(batch[1][0], y[INDICES])


def test_datasets_are_collated_in_their_structure():
    assert take(Squares(), INDICES).tolist() == [9, 0, 9]
    x, y = torch.rand(5, 3), torch.arange(5)
    batch = take(TensorDataset(x, y), INDICES)
    assert isinstance(batch, tuple)
    assert torch.equal(batch[0], x[INDICES])
    assert torch.equal(batch[1], y[INDICES])


def test_a_dataset_that_fetches_batches_is_asked_once():
    values, labels = take(Batched(), INDICES)
    assert values.tolist() == [3.0, 0.0, 3.0]
    assert labels["label"].tolist() == [3, 0, 3]


class Lines:
    """A stream of single numbers that counts how many were read."""

    def __init__(self, samples):
        self.samples, self.read = samples, 0

    def __iter__(self):
        for i in range(self.samples):
            self.read += 1
            yield {"x": torch.tensor([float(i)])}


def padded(samples):
    longest = max(len(sample) for sample in samples)
    rows = [torch.nn.functional.pad(sample, (0, longest - len(sample))) for sample in samples]
    lengths = torch.tensor([len(sample) for sample in samples])
    return {"x": torch.stack(rows), "length": lengths}


def test_a_mapping_stays_a_mapping():
    data = {"ids": torch.arange(6).reshape(3, 2), "mask": torch.ones(3, 2)}
    batch = take(data, [2, 0])
    assert batch["ids"].tolist() == [[4, 5], [0, 1]]
    assert size(data) == 3
    assert in_memory(data)
    assert count(batch) == 2


def test_samples_of_different_length_are_put_together_by_the_task():
    data = [torch.ones(n) for n in (3, 1, 2)]
    assert not in_memory(data)
    batch = take(data, [1, 2], padded)
    assert batch["x"].tolist() == [[1, 0], [1, 1]]
    assert [b["length"].tolist() for b in in_order(data, 2, padded)] == [[3, 1], [2]]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7])
@pytest.mark.parametrize("kind", ["tensors", "dataset", "stream"])
def test_in_order_gives_every_sample_once(kind, batch_size):
    data = {"tensors": (torch.arange(7.0),), "dataset": Squares(), "stream": Lines(7)}[kind]
    batches = list(in_order(data, batch_size))
    assert all(count(batch) <= batch_size for batch in batches)
    assert sum(count(batch) for batch in batches) == (5 if kind == "dataset" else 7)


def test_a_stream_is_read_no_further_than_needed():
    stream = Lines(1_000)
    assert is_stream(stream)
    assert size(stream) is None
    assert first(stream, 4)["x"].shape == (4, 1)
    assert stream.read == 4


def test_batches_in_memory_are_views():
    data = (torch.arange(8.0),)
    (batch, *_) = in_order(data, 4)
    assert batch[0].data_ptr() == data[0].data_ptr()


def test_moving_a_batch_keeps_its_structure():
    moved = on({"x": torch.zeros(1), "text": ["a"]}, "meta")
    assert moved["x"].device.type == "meta"
    assert moved["text"] == ["a"]


def test_what_holds_nothing_is_said():
    with pytest.raises(UsageError, match="no sample"):
        first((torch.zeros(0),), 1)
    with pytest.raises(UsageError, match="no tensor"):
        count({"text": ["a"]})
