"""Batches that lie in memory: taken by their indices, not sample by sample through a DataLoader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

# These draw from the global generators only when a pass begins. A sampler of the user's own may draw at any time.
DRAW_AT_START = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class Columns(Dataset[Any]):
    """A TensorDataset, or a Subset of one, that gives whole batches: the same numbers in the same memory layout."""

    def __init__(self, tensors: Sequence[Tensor], rows: Sequence[int] | None) -> None:
        self._tensors = tensors
        self._rows = rows

    def __len__(self) -> int:
        return len(self._tensors[0] if self._rows is None else self._rows)

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        rows = torch.tensor(indices if self._rows is None else [self._rows[index] for index in indices])
        return [tensor.index_select(0, rows.to(tensor.device)) for tensor in self._tensors]


def in_memory(batches: Iterable[Any]) -> DataLoader[Any] | None:
    """The loader's batches without its copying, drawn by its own samplers; None where they may differ by one bit.

    Only a plain DataLoader of a plain TensorDataset is known not to: transforms, random data sets, worker processes
    and collate functions of the user's keep their loader.
    """
    if type(batches) is not DataLoader or batches.num_workers or batches.pin_memory:
        return None
    if batches.collate_fn is not default_collate or type(batches.batch_sampler) is not BatchSampler:
        return None
    columns = _columns(batches.dataset)
    if columns is None or type(batches.batch_sampler.sampler) not in DRAW_AT_START:
        return None
    return DataLoader(
        columns, batch_sampler=batches.batch_sampler, collate_fn=_as_they_are, generator=batches.generator
    )


def _columns(data: Any) -> Columns | None:
    rows = None
    if type(data) is Subset and type(data.dataset) is TensorDataset:
        data, rows = data.dataset, list(data.indices)
    # What stacking makes of samples that are not contiguous depends on their strides; views and dtypes do not matter.
    if type(data) is TensorDataset and all(type(t) is Tensor and t.is_contiguous() for t in data.tensors):
        return Columns(data.tensors, rows)
    return None


def _as_they_are(batch: list[Tensor]) -> list[Tensor]:
    return batch
