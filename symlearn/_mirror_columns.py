"""The columns ``O`` of a reflection ``I - 2 O O^T`` in three forms: a dense matrix, swapped pairs, flipped coordinates.

Each form knows its shape and applies itself along the last axis of a tensor, differentiably and under ``torch.func``;
the last two keep only indices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import qr
from torch import Tensor


def independent_rows(rows: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the row space, one column per independent row, by Gram-Schmidt in the order of the rows."""
    rows = rows[rows.any(axis=1)]
    rows = rows / np.abs(rows).max(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    triangle, order = qr(rows.T, mode="r", pivoting=True)
    pivots = np.abs(np.diagonal(triangle))
    independent = np.sort(order[: pivots.size][pivots > max(rows.shape) * np.finfo(np.float64).eps])
    basis, triangle = qr(rows[independent].T, mode="economic")
    return basis * np.where(np.diagonal(triangle) < 0, -1.0, 1.0)


class Columns:
    def distance(self, theta: Tensor) -> Tensor:
        return self.coordinates(theta).norm(dim=-1)

    def coordinates(self, theta: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Dense(Columns):
    matrix: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def first_rows(self) -> np.ndarray:
        """Row of the first nonzero entry of each column."""
        return (self.matrix.numpy() != 0).argmax(axis=0)

    def coordinates(self, theta: Tensor) -> Tensor:
        return theta @ self.matrix.to(theta)

    def reflected(self, theta: Tensor) -> Tensor:
        return theta - 2 * self.embedded(self.coordinates(theta))

    def projected(self, theta: Tensor) -> Tensor:
        return theta - self.embedded(self.coordinates(theta))

    def embedded(self, coordinates: Tensor) -> Tensor:
        return coordinates @ self.matrix.mT.to(coordinates)


@dataclass(frozen=True)
class Flip(Columns):
    n: int
    indices: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, len(self.indices)

    def dense(self) -> np.ndarray:
        matrix = np.zeros(self.shape)
        matrix[self.indices, np.arange(self.shape[1])] = 1.0
        return matrix

    def first_rows(self) -> np.ndarray:
        return self.indices.numpy()

    def coordinates(self, theta: Tensor) -> Tensor:
        return theta.index_select(-1, self.indices.to(theta.device))

    def reflected(self, theta: Tensor) -> Tensor:
        return theta.index_copy(-1, self.indices.to(theta.device), -self.coordinates(theta))

    def projected(self, theta: Tensor) -> Tensor:
        return theta.index_fill(-1, self.indices.to(theta.device), 0.0)

    def embedded(self, coordinates: Tensor) -> Tensor:
        origin = coordinates.new_zeros(*coordinates.shape[:-1], self.n)
        return origin.index_copy(-1, self.indices.to(coordinates.device), coordinates)


@dataclass(frozen=True)
class Swap(Columns):
    n: int
    first: Tensor
    second: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, len(self.first)

    def dense(self) -> np.ndarray:
        matrix, columns = np.zeros(self.shape), np.arange(self.shape[1])
        matrix[self.first, columns] = 1 / math.sqrt(2)
        matrix[self.second, columns] = -1 / math.sqrt(2)
        return matrix

    def first_rows(self) -> np.ndarray:
        return np.minimum(self.first.numpy(), self.second.numpy())

    def coordinates(self, theta: Tensor) -> Tensor:
        first, second = self._pairs(theta)
        return first / math.sqrt(2) - second / math.sqrt(2)

    def reflected(self, theta: Tensor) -> Tensor:
        first, second = self._pairs(theta)
        return self._replaced(theta, second, first)

    def projected(self, theta: Tensor) -> Tensor:
        first, second = self._pairs(theta)
        mean = first / 2 + second / 2
        return self._replaced(theta, mean, mean)

    def embedded(self, coordinates: Tensor) -> Tensor:
        origin, values = coordinates.new_zeros(*coordinates.shape[:-1], self.n), coordinates / math.sqrt(2)
        return self._replaced(origin, values, -values)

    def _pairs(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        device = theta.device
        return theta.index_select(-1, self.first.to(device)), theta.index_select(-1, self.second.to(device))

    def _replaced(self, theta: Tensor, first: Tensor, second: Tensor) -> Tensor:
        where = torch.cat([self.first, self.second]).to(theta.device)
        return theta.index_copy(-1, where, torch.cat([first, second], dim=-1))
