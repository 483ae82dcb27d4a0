from __future__ import annotations

import torch
from torch.utils.data import Dataset, TensorDataset

from hybridkit.clustering.batches import take

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
