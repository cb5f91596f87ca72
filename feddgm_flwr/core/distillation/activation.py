"""Between two of the ConvNet's convolutions: norm, ReLU and pool, from map a to p and back.

Four passes in closed form, as ``convnet`` needs them: forward, backward, and the derivative of
each along a direction. A dot over a name (``a_dot``) is the derivative along v; ``d_`` is the
loss's derivative, so ``d_p`` = dloss/dp. Knows nothing of convolutions. Axes: ``n`` images, ``c``
channels, ``h w`` positions; maps are in channels last.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from feddgm_flwr.core.compiling import compiled as compiled_pass

_ops = torch.ops.aten


def activation(
    a: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int, *, compiled: bool = False
) -> "Normed | Plain":
    """Return the block's activation at ``a``, which is overwritten; without a scale without norm.

    ``compiled`` fuses the passes of a normed one into few kernels; the first call of each takes
    seconds, and needs a compiler.
    """
    if scale is None or shift is None:
        return Plain(a)
    return (_compiled() if compiled else Normed)(a, scale, shift, groups)


class Plain:
    """ReLU and pool: p = pool(m a), with the mask m = [a > 0]."""

    def __init__(self, a: Tensor) -> None:
        self.pooled = avg_pool2d(a.relu(), 2)
        self._mask = _positive(a)

    def backward(self, d_p: Tensor) -> Tensor:
        """Return d_a."""
        return _unpool(d_p, self._mask)

    def forward_dot(self, a_dot: Tensor, *_: Tensor | None) -> Tensor:
        """Return p_dot."""
        return avg_pool2d(a_dot.mul_(self._mask), 2)

    def backward_dot(self, d_p_dot: Tensor) -> Tensor:
        """Return d_a_dot."""
        return self.backward(d_p_dot)

    def bias_gradient(self, d_a: Tensor) -> Tensor:
        """Sum d_a, or its derivative, over images and positions."""
        return d_a.sum((0, 2, 3))

    def affine_gradient(self) -> tuple[Tensor, ...]:
        """Nothing: there is no norm."""
        return ()

    def affine_gradient_dot(self) -> tuple[Tensor, ...]:
        """Nothing: there is no norm."""
        return ()

    def held(self) -> list[Tensor]:
        """Return the maps that wait for the way along a direction."""
        return [self._mask]


class Normed:
    """Group norm, ReLU and pool.

        x = (a - mean a) r,   r = (var a + eps)^(-1/2),   y = scale x + shift,   p = pool(m y)

    with means over a group's channels and positions, and the mask m = [y > 0]. ``centred`` is
    a - mean a. The masked sums of y's derivatives need maps of the pool's size alone:
    ``pool_1`` = pool(m), ``pool_c`` = pool(m centred), ``pool_dot`` = pool(m a_dot). Coefficients
    have one value an image and channel.
    """

    EPS = 1e-5

    def __init__(self, a: Tensor, scale: Tensor, shift: Tensor, groups: int) -> None:
        self._groups = groups
        self._positions = a.shape[2] * a.shape[3]
        self._scale = scale.view(1, -1, 1, 1)
        self.pooled = self.forward(a, shift.view(1, -1, 1, 1))

    def forward(self, a: Tensor, shift: Tensor) -> Tensor:
        """Return p; ``a`` is overwritten."""
        self.centred = a.sub_(self._over_group(_mean(a)))
        variance = self._over_group(_mean(self.centred * self.centred))
        self.r = (variance + self.EPS).rsqrt_()
        self.slope = self._scale * self.r
        self.mask = _positive(torch.addcmul(shift, self.centred, self.slope))
        self.pool_1 = avg_pool2d(self.mask, 2)
        self.pool_c = avg_pool2d(self.centred * self.mask, 2)
        return torch.addcmul(shift * self.pool_1, self.pool_c, self.slope)

    def backward(self, d_p: Tensor) -> Tensor:
        """d_a = r (scale d_y - mean(scale d_y) - x mean(scale d_y x)),  d_y = m unpool(d_p)."""
        self.d_p = d_p
        self.mean_dy = self._mean_pooled(d_p, self.pool_1)
        self.mean_dyc = self._mean_pooled(d_p, self.pool_c)
        self.u = self._over_group(self._scale * self.mean_dy)
        self.q = self._over_group(self.slope * self.mean_dyc)
        d_a = _unpool(self.slope * d_p, self.mask)
        return d_a.add_(-self.r * self.u).addcmul_(self.centred, -self.r * self.r * self.q)

    def affine_gradient(self) -> tuple[Tensor, ...]:
        """Sum d_y x and d_y over images and positions."""
        return self._summed(self.r * self.mean_dyc), self._summed(self.mean_dy)

    def forward_dot(self, a_dot: Tensor, v_scale: Tensor | None, v_shift: Tensor | None) -> Tensor:
        """Differentiate p along v: x_dot = r (a_dot - mean a_dot - x mean(x a_dot))."""
        assert v_scale is not None
        assert v_shift is not None
        self.a_dot = a_dot
        self._v_scale = v_scale.view(1, -1, 1, 1)
        self.mean_dot = self._over_group(_mean(a_dot))
        self.m = self.r * self._over_group(_mean(self.centred * a_dot))
        self.pool_dot = avg_pool2d(a_dot * self.mask, 2)
        # d(scale r)/dv
        self.slope_dot = self.r * (self._v_scale - self.m * self.slope)
        p_dot = self.pool_1 * (v_shift.view(1, -1, 1, 1) - self.slope * self.mean_dot)
        return p_dot.addcmul_(self.pool_c, self.slope_dot).addcmul_(self.pool_dot, self.slope)

    def backward_dot(self, d_p_dot: Tensor) -> Tensor:
        """Differentiate ``backward`` along v."""
        r, m, u, q, scale = self.r, self.m, self.u, self.q, self._scale
        self.mean_dy_dot = self._mean_pooled(d_p_dot, self.pool_1)
        mean_dy_a_dot = self._mean_pooled(self.d_p, self.pool_dot)
        mean_dy_x_dot = r * (mean_dy_a_dot - r * m * self.mean_dyc - self.mean_dot * self.mean_dy)
        # Of d_y_dot x + d_y x_dot.
        self.mean_dyx_dot = r * self._mean_pooled(d_p_dot, self.pool_c) + mean_dy_x_dot
        u_dot = self._over_group(self._v_scale * self.mean_dy + scale * self.mean_dy_dot)
        q_dot = self._over_group(self._v_scale * r * self.mean_dyc + scale * self.mean_dyx_dot)
        d_y = (self.slope_dot * self.d_p).addcmul_(d_p_dot, self.slope)
        d_a_dot = _unpool(d_y, self.mask)
        d_a_dot.add_(r * (r * m * u - u_dot + r * q * self.mean_dot))
        d_a_dot.addcmul_(self.centred, r * r * (2 * r * m * q - q_dot))
        return d_a_dot.addcmul_(self.a_dot, -r * r * q)

    def affine_gradient_dot(self) -> tuple[Tensor, ...]:
        """Differentiate ``affine_gradient`` along v."""
        return self._summed(self.mean_dyx_dot), self._summed(self.mean_dy_dot)

    def bias_gradient(self, d_a: Tensor) -> Tensor:
        """Sum of d_a; a norm of single channels takes any bias away again."""
        if self._groups == d_a.shape[1]:
            return d_a.new_zeros(d_a.shape[1])
        return d_a.sum((0, 2, 3))

    def held(self) -> list[Tensor]:
        """Return the maps that wait for the way along a direction."""
        return [t for t in vars(self).values() if torch.is_tensor(t)]

    def _over_group(self, per_channel: Tensor) -> Tensor:
        """Average over a group's channels."""
        n, c = per_channel.shape[:2]
        if self._groups == c:
            return per_channel
        mean = per_channel.view(n, self._groups, -1).mean(2, keepdim=True)
        return mean.expand(n, self._groups, c // self._groups).reshape(n, c, 1, 1)

    def _mean_pooled(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the mean over a's positions of what a product of pooled maps stands for."""
        return (a * b).sum((2, 3), keepdim=True) / self._positions

    def _summed(self, mean: Tensor) -> Tensor:
        return mean.sum(0).flatten() * self._positions


@cache
def _compiled() -> type[Normed]:
    passes = ("forward", "backward", "forward_dot", "backward_dot")
    kernels = {k: compiled_pass(getattr(Normed, k)) for k in passes}
    return type("Compiled", (Normed,), kernels)


def _positive(y: Tensor) -> Tensor:
    """Return [y > 0], in place of y: a mask of bools made floats takes five times as long."""
    return y.gt_(0)


def _mean(a: Tensor) -> Tensor:
    return a.mean((2, 3), keepdim=True)


def _unpool(d_p: Tensor, mask: Tensor) -> Tensor:
    """Return the adjoint of avg_pool2d(., 2), masked."""
    d_y: Tensor = _ops.avg_pool2d_backward(d_p, mask, [2, 2], [2, 2], [0, 0], False, True, None)
    return d_y.mul_(mask)
