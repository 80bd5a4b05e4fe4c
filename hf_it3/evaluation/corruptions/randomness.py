"""Random numbers that belong to one image, whatever batch it is in."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch


class ImageRandom:
    """One random stream per image of a batch.

    The stream of an image depends on `(seed, stream, index)` alone, so batch size, order and the number of
    processes do not change what an image draws. Numbers are drawn on the CPU in float32 and then moved.

    Args:
        seed: any int.
        stream: what the numbers are for, for example `"mnist-c/shot_noise/3"`.
        indices: data-set position of each image of the batch, length B.
        dtype: of the tensors that are returned.
        device: of the tensors that are returned.
    """

    def __init__(
        self, seed: int, stream: str, indices: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
    ):
        self.dtype = dtype
        self.device = device
        self._generators = [self._generator(f"{seed}/{stream}/{index}") for index in indices]

    @staticmethod
    def _generator(key: str) -> np.random.Generator:
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))

    def _tensor(self, draws: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(draws)).to(device=self.device, dtype=self.dtype)

    def normal(self, shape: Sequence[int] = ()) -> torch.Tensor:
        """Standard normal numbers, (B, *shape)."""
        return self._tensor([g.standard_normal(shape, dtype=np.float32) for g in self._generators])

    def uniform(self, low: float, high: float, shape: Sequence[int] = ()) -> torch.Tensor:
        """Uniform numbers in [low, high), (B, *shape)."""
        return self._tensor([g.random(shape, dtype=np.float32) for g in self._generators]) * (high - low) + low

    def integers(self, low: int, high: int, shape: Sequence[int] = ()) -> torch.Tensor:
        """Whole numbers in [low, high), (B, *shape), int64."""
        draws = [g.integers(low, high, shape) for g in self._generators]
        return torch.from_numpy(np.stack(draws)).to(self.device)

    def sign(self, shape: Sequence[int] = ()) -> torch.Tensor:
        """-1 or 1 with equal chance, (B, *shape)."""
        return (2 * self.integers(0, 2, shape) - 1).to(self.dtype)

    def poisson(self, rates: torch.Tensor) -> torch.Tensor:
        """Poisson counts with the given rates (B, ...), one stream per row; same shape as `rates`."""
        rows = rates.cpu().double().numpy()
        return self._tensor([g.poisson(row) for g, row in zip(self._generators, rows, strict=True)])
