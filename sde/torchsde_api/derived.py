"""Brownian motions made of others."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sde.torchsde_api.brownian import Answer, BaseBrownian, BrownianInterval, Scalar

__all__ = ["BrownianPath", "BrownianTree", "ReverseBrownian", "brownian_interval_like"]


class _Derived(BaseBrownian):
    """A Brownian motion made of another."""

    def __init__(self, base: BaseBrownian) -> None:
        self._base = base

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base!r})"

    def expect(self, dt: float) -> None:
        """Tell the base, if it is one that can be told."""
        if isinstance(self._base, BaseBrownian):
            self._base.expect(dt)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the increments."""
        return self._base.dtype

    @property
    def device(self) -> torch.device:
        """Where the increments are computed."""
        return self._base.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the increments."""
        return self._base.shape

    @property
    def levy_area_approximation(self) -> str:
        """What is known beside the increments."""
        return self._base.levy_area_approximation


class ReverseBrownian(_Derived):
    """A Brownian motion seen in reversed time: its increment over ``[-tb, -ta]``, not negated.

    Args:
        base_brownian: The motion.
    """

    def __init__(self, base_brownian: BaseBrownian) -> None:
        super().__init__(base_brownian)
        self.base_brownian = base_brownian

    def __call__(
        self, ta: Scalar, tb: Scalar | None = None, return_U: bool = False, return_A: bool = False
    ) -> Answer:
        """The answer of the base for ``[-tb, -ta]``.

        Raises:
            ValueError: If ``tb`` is missing.
        """
        if tb is None:
            raise ValueError("`tb` must be given for a reversed Brownian motion; got None.")
        return self.base_brownian(-tb, -ta, return_U=return_U, return_A=return_A)


class _FromState(_Derived):
    """A Brownian motion that starts from a state, which queries at one instant add."""

    def __init__(self, base: BrownianInterval, w0: Tensor) -> None:
        super().__init__(base)
        self._w0 = w0

    def __call__(
        self, t: Scalar, tb: Scalar | None = None, return_U: bool = False, return_A: bool = False
    ) -> Answer:
        """The state at ``t``, or what :class:`BrownianInterval` answers for ``[t, tb]``."""
        answer = self._base(t, tb, return_U=return_U, return_A=return_A)
        return answer + self._w0 if tb is None and isinstance(answer, Tensor) else answer


class BrownianPath(_FromState):
    """A Brownian motion on ``[t0, t0 + 1]``.

    Args:
        t0: Start.
        w0: State there.
        window_size: Kept for compatibility.
    """

    def __init__(self, t0: Scalar, w0: Tensor, window_size: int = 8) -> None:
        layout = {"size": w0.shape, "dtype": w0.dtype, "device": w0.device}
        super().__init__(BrownianInterval(t0, t0 + 1, **layout), w0)


class BrownianTree(_FromState):
    """A Brownian motion on ``[t0, t1]``, resolved to a tolerance.

    Args:
        t0: Start.
        w0: State there.
        t1: End; ``t0 + 1`` if missing.
        w1: State there, drawn if missing.
        entropy: Seed; ``None`` draws one.
        tol: Resolution in time.
        pool_size: Kept for compatibility.
        cache_depth: Kept for compatibility.
        safety: Kept for compatibility.
    """

    def __init__(
        self,
        t0: Scalar,
        w0: Tensor,
        t1: Scalar | None = None,
        w1: Tensor | None = None,
        entropy: int | None = None,
        tol: float = 1e-6,
        pool_size: int = 24,
        cache_depth: int = 9,
        safety: float | None = None,
    ) -> None:
        layout = {"size": w0.shape, "dtype": w0.dtype, "device": w0.device}
        base = BrownianInterval(
            t0,
            t0 + 1 if t1 is None else t1,
            entropy=entropy,
            tol=tol,
            halfway_tree=True,
            W=None if w1 is None else w1 - w0,
            **layout,
        )
        super().__init__(base, w0)


def brownian_interval_like(
    y: Tensor,
    t0: Scalar = 0.0,
    t1: Scalar = 1.0,
    size: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **kwargs: object,
) -> BrownianInterval:
    """A :class:`BrownianInterval` of the shape, type and device of a tensor, where these are not given.

    Args:
        y: The tensor.
        t0: Start.
        t1: End.
        size: Shape of the increments.
        dtype: Type of the increments.
        device: Where they are computed.
        **kwargs: Of :class:`BrownianInterval`.

    Returns:
        The Brownian motion.
    """
    size = tuple(y.shape) if size is None else size
    dtype, device = dtype or y.dtype, y.device if device is None else device
    return BrownianInterval(t0, t1, size, dtype, device, **kwargs)  # type: ignore[arg-type]
