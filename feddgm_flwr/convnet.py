"""The ConvNet surrogate's gradient, and its derivative along a vector, in closed form.

Trajectory matching differentiates a gradient. Left to autograd that is a graph of a graph, of
generic second derivatives over whole batches. Here both passes are written out: backpropagation,
and backpropagation of the forward derivative (Pearlmutter 1994, the R-operator). With g(theta) the
gradient of the loss and v a direction, the forward derivative of the network along v is a second,
linear network beside the first, and its backpropagation yields

    <g, v>,   d<g, v>/dX,   d<g, v>/dY   and   d<g, v>/dtheta = H v

in the operations of six convolutions a layer on top of backpropagation's three. A dot over a name
in the equations (``a_dot`` in the code) is the derivative along v.

What makes it fast: one convolution where a sum of two is needed (their inputs joined); channels
last, which the convolutions want; what lies between them (normalise, ReLU, pool) in few passes,
since behind a pool nearly all is linear in three pooled maps; and a few images at a time, so that a
layer's maps stay in the processor's cache. Convolution's bias under a norm of single channels has
gradient zero, exactly.

Knows nothing of trajectories, augmentation or clients. Axes: ``n`` images, ``c`` channels, ``h w``
positions of a layer's map, ``k`` classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from feddgm_flwr.models import ConvNet
from feddgm_flwr.params import Params
from feddgm_flwr.student import Pulled, Trace, held_bytes

CACHE_BYTES = 4 * 2**20
"""Size of the first layer's map up to which images are taken together on a CPU (measured)."""

_ops = torch.ops.aten


@dataclass(frozen=True)
class _Layer:
    """A block's parameters, or a vector in their space; scale and shift are None without norm."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None


@dataclass(frozen=True)
class _Weights:
    blocks: list[_Layer]
    head_weight: Tensor
    head_bias: Tensor


class _Convolution:
    """A 3x3 convolution and its adjoints, of operands rounded to ``precision``."""

    def __init__(self, precision: torch.dtype | None) -> None:
        self._precision = precision

    def _rounded(self, t: Tensor) -> Tensor:
        return t if self._precision is None else t.to(self._precision)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return weight * x + bias."""
        x_, weight_, bias_ = (self._rounded(t) for t in (x, weight, bias))
        return torch.conv2d(x_, weight_, bias_, padding=1).to(x.dtype)

    def back(self, d_a: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """Return the adjoint in the input."""
        return self._adjoint(d_a, like, weight, 0)

    def weight_gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], weight: Tensor
    ) -> Tensor:
        """Return the adjoint in the weight, summed over pairs of input and output."""
        x, d_a = (t[0] if len(t) == 1 else torch.cat(list(t)) for t in (inputs, outputs))
        return self._adjoint(d_a, x, weight, 1)

    def _adjoint(self, d_a: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
        ones = [1, 1]
        wanted = [which == 0, which == 1, False]
        operands = (self._rounded(t) for t in (d_a, x, weight))
        adjoints = _ops.convolution_backward(
            *operands, None, ones, ones, ones, False, [0, 0], 1, wanted
        )
        adjoint: Tensor = adjoints[which]
        return adjoint.to(d_a.dtype)


class ConvNetStudent:
    """``models.ConvNet`` under mean cross-entropy, without autograd.

    Parameters
    ----------
    precision
        What convolutions round their operands to; they add up in float32.
    """

    def __init__(self, net: ConvNet, precision: torch.dtype | None = None) -> None:
        self._net = net
        self._convolution = _Convolution(precision)

    def step(
        self, params: Params, images: Tensor, targets: Tensor, *, keep: bool
    ) -> tuple[list[Tensor], Trace]:
        """Return g and its trace."""
        trace = _StepTrace(self._net, self._convolution, params, images.detach(), targets.detach())
        return trace.evaluate(keep=keep), trace


class _StepTrace:
    """A step's trace, a few images at a time."""

    def __init__(
        self,
        net: ConvNet,
        convolution: _Convolution,
        params: Params,
        images: Tensor,
        targets: Tensor,
    ) -> None:
        self._net, self._convolution = net, convolution
        self._at = _weights(net, list(params.values()))
        self._parts = list(_chunks(net, images, targets))
        self._total = len(images)
        self._kept: list[_Backprop] = []

    @property
    def nbytes(self) -> int:
        """Memory of the maps that are kept."""
        return sum(part.nbytes for part in self._kept)

    @torch.no_grad()
    def evaluate(self, *, keep: bool) -> list[Tensor]:
        gradient: list[Tensor] = []
        for images, targets in self._parts:
            part = self._backprop(images, targets)
            gradient = _plus(gradient, part.gradient())
            if keep:
                self._kept.append(part)
        return gradient

    @torch.no_grad()
    def pull(self, direction: Sequence[Tensor], *, through: bool) -> Pulled:
        along = _weights(self._net, direction)
        slope, params = torch.zeros_like(direction[0].flatten()[0]), list[Tensor]()
        d_images, d_targets = [], []
        for images, targets in self._parts:
            part = self._kept.pop(0) if self._kept else self._backprop(images, targets)
            pulled = part.pull(along, through=through)
            slope = slope + pulled.slope
            d_images.append(pulled.images)
            d_targets.append(pulled.targets)
            params = _plus(params, pulled.params or [])
        return Pulled(slope, torch.cat(d_images), torch.cat(d_targets), params if through else None)

    def _backprop(self, images: Tensor, targets: Tensor) -> "_Backprop":
        return _Backprop(self._net, self._convolution, self._at, images, targets, self._total)


class _Backprop:
    """Forward and backward through a few images; then, on asking, along a direction.

    Notation, per block: h its input, a = W * h + b, p what leaves the pool; ``d_`` is the loss's
    derivative, so ``d_p`` = dloss/dp. At the head: f the features, z the logits.
    """

    def __init__(
        self,
        net: ConvNet,
        convolution: _Convolution,
        at: _Weights,
        images: Tensor,
        targets: Tensor,
        total: int,
    ) -> None:
        self._convolution = convolution
        self._at, self._std, self._targets, self._total = at, net.normalize.std, targets, total
        h = _channels_last((images - net.normalize.mean) / self._std)
        self._inputs: list[Tensor] = []
        self._blocks: list[_NormedBlock | _PlainBlock] = []
        for layer in at.blocks:
            block = _block(convolution.forward(h, layer.weight, layer.bias), layer, net.groups)
            self._inputs.append(h)
            self._blocks.append(block)
            h = block.pooled
        self._shape = h.shape
        self._features = h.flatten(1)
        logits = torch.addmm(at.head_bias, self._features, at.head_weight.t())
        self._prob = logits.softmax(1)
        self._mass = targets.sum(1, keepdim=True)
        self._d_logits = (self._prob * self._mass - targets) / total

        self._d_maps: list[Tensor] = []  # d_a, last block first
        d_p = self._unflatten(self._d_logits @ at.head_weight)
        for i in reversed(range(len(at.blocks))):
            d_a = self._blocks[i].backward(d_p)
            self._d_maps.insert(0, d_a)
            if i:
                d_p = convolution.back(d_a, at.blocks[i].weight, self._inputs[i])

    @property
    def nbytes(self) -> int:
        maps = [t for block in self._blocks for t in vars(block).values() if torch.is_tensor(t)]
        return held_bytes([*maps, *self._inputs, *self._d_maps, self._features, self._prob])

    def gradient(self) -> list[Tensor]:
        """Return g's part of these images, in the order of the parameters."""
        parts: list[Tensor] = []
        for h, d_a, block, layer in zip(
            self._inputs, self._d_maps, self._blocks, self._at.blocks, strict=True
        ):
            d_weight = self._convolution.weight_gradient([h], [d_a], layer.weight)
            parts += [d_weight, block.bias_gradient(d_a), *block.affine_gradient()]
        return [*parts, self._d_logits.t() @ self._features, self._d_logits.sum(0)]

    def pull(self, v: _Weights, *, through: bool) -> Pulled:
        """Return <g, v>'s part of these images and its derivatives."""
        at = self._at
        h_dot: Tensor | None = None  # the images do not move with v
        dots: list[Tensor | None] = []
        for h, block, layer, along in zip(
            self._inputs, self._blocks, at.blocks, v.blocks, strict=True
        ):
            # a_dot = v_W * h + W * h_dot + v_b
            dots.append(h_dot)
            if h_dot is None:
                a_dot = self._convolution.forward(h, along.weight, along.bias)
            else:
                both = torch.cat([along.weight, layer.weight], 1)
                a_dot = self._convolution.forward(torch.cat([h, h_dot], 1), both, along.bias)
            h_dot = block.forward_dot(a_dot, along)
        assert h_dot is not None
        f_dot = h_dot.flatten(1)
        z_dot = torch.addmm(v.head_bias, f_dot, at.head_weight.t())
        z_dot.addmm_(self._features, v.head_weight.t())

        # The head: d_z = (P mass - Y) / n, with P = softmax(z).
        slope = (self._d_logits * z_dot).sum()
        mean_dot = (self._prob * z_dot).sum(1, keepdim=True)
        d_targets = (mean_dot - z_dot) / self._total
        d_z_dot = self._prob * (z_dot - mean_dot) * self._mass / self._total

        params: list[Tensor] = []
        if through:
            d_head = d_z_dot.t() @ self._features + self._d_logits.t() @ f_dot
            params = [d_head, d_z_dot.sum(0)]
        d_p_dot = self._unflatten(d_z_dot @ at.head_weight + self._d_logits @ v.head_weight)
        for i in reversed(range(len(at.blocks))):
            block, h, h_dot, d_a = self._blocks[i], self._inputs[i], dots[i], self._d_maps[i]
            weights = [at.blocks[i].weight, v.blocks[i].weight]
            d_a_dot = block.backward_dot(d_p_dot)
            if through:
                ins, outs = ([h], [d_a_dot]) if h_dot is None else ([h_dot, h], [d_a, d_a_dot])
                d_weight = self._convolution.weight_gradient(ins, outs, weights[0])
                d_affine = block.affine_gradient_dot()
                params = [d_weight, block.bias_gradient(d_a_dot), *d_affine, *params]
            # d_h_dot = W^T * d_a_dot + v_W^T * d_a
            if i:
                joined = torch.cat([d_a_dot, d_a], 1)
                d_p_dot = self._convolution.back(joined, torch.cat(weights, 0), h)
        d_images = _convolve_back_to_images([d_a_dot, d_a], weights) / self._std
        return Pulled(slope, d_images, d_targets, params)

    def _unflatten(self, flat: Tensor) -> Tensor:
        return _channels_last(flat.view(self._shape))


class _PlainBlock:
    """ReLU and pool: p = pool(m a), with the mask m = [a > 0]."""

    def __init__(self, a: Tensor) -> None:
        self.mask = (a > 0).to(a.dtype)
        self.pooled = avg_pool2d(a * self.mask, 2)

    def backward(self, d_p: Tensor) -> Tensor:
        return _unpool(d_p, self.mask).mul_(self.mask)

    def forward_dot(self, a_dot: Tensor, _: _Layer) -> Tensor:
        return avg_pool2d(a_dot.mul_(self.mask), 2)

    def backward_dot(self, d_p_dot: Tensor) -> Tensor:
        return self.backward(d_p_dot)

    def bias_gradient(self, d_a: Tensor) -> Tensor:
        return d_a.sum((0, 2, 3))

    def affine_gradient(self) -> tuple[Tensor, ...]:
        return ()

    def affine_gradient_dot(self) -> tuple[Tensor, ...]:
        return ()


class _NormedBlock:
    """Group norm, ReLU and pool, from the convolution's map a to p and back.

        x = (a - mean a) r,   r = (var a + eps)^(-1/2),   y = scale x + shift,   p = pool(m y)

    with means over a group's channels and positions, and the mask m = [y > 0]. ``centred`` is
    a - mean a. The masked sums of y's derivatives need maps of the pool's size alone:
    ``pool_1`` = pool(m), ``pool_c`` = pool(m centred), ``pool_dot`` = pool(m a_dot). Coefficients
    have one value an image and channel.
    """

    def __init__(self, a: Tensor, layer: _Layer, groups: int, eps: float) -> None:
        assert layer.scale is not None
        assert layer.shift is not None
        self._groups = groups
        self._positions = a.shape[2] * a.shape[3]
        self._scale = layer.scale.view(1, -1, 1, 1)
        shift = layer.shift.view(1, -1, 1, 1)
        self.centred = a.sub_(self._over_group(_mean(a)))
        variance = self._over_group(_mean(self.centred * self.centred))
        self.r = (variance + eps).rsqrt_()
        self.slope = self._scale * self.r
        self.mask = (torch.addcmul(shift, self.centred, self.slope) > 0).to(a.dtype)
        self.pool_1 = avg_pool2d(self.mask, 2)
        self.pool_c = avg_pool2d(self.centred * self.mask, 2)
        self.pooled = torch.addcmul(shift * self.pool_1, self.pool_c, self.slope)

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

    def backward(self, d_p: Tensor) -> Tensor:
        """d_a = r (scale d_y - mean(scale d_y) - x mean(scale d_y x)),  d_y = m unpool(d_p)."""
        self.d_p = d_p
        self.mean_dy = self._mean_pooled(d_p, self.pool_1)
        self.mean_dyc = self._mean_pooled(d_p, self.pool_c)
        self.u = self._over_group(self._scale * self.mean_dy)
        self.q = self._over_group(self.slope * self.mean_dyc)
        d_a = _unpool(self.slope * d_p, self.mask).mul_(self.mask)
        return d_a.add_(-self.r * self.u).addcmul_(self.centred, -self.r * self.r * self.q)

    def affine_gradient(self) -> tuple[Tensor, ...]:
        """Sum d_y x and d_y over images and positions."""
        return self._summed(self.r * self.mean_dyc), self._summed(self.mean_dy)

    def forward_dot(self, a_dot: Tensor, along: _Layer) -> Tensor:
        """Differentiate p along v: x_dot = r (a_dot - mean a_dot - x mean(x a_dot))."""
        assert along.scale is not None
        assert along.shift is not None
        self.a_dot = a_dot
        self._v_scale = along.scale.view(1, -1, 1, 1)
        self.mean_dot = self._over_group(_mean(a_dot))
        self.m = self.r * self._over_group(_mean(self.centred * a_dot))
        self.pool_dot = avg_pool2d(a_dot * self.mask, 2)
        # d(scale r)/dv
        self.slope_dot = self.r * (self._v_scale - self.m * self.slope)
        p_dot = self.pool_1 * (along.shift.view(1, -1, 1, 1) - self.slope * self.mean_dot)
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
        d_a_dot = _unpool(d_y, self.mask).mul_(self.mask)
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

    def _summed(self, mean: Tensor) -> Tensor:
        return mean.sum(0).flatten() * self._positions


def _block(a: Tensor, layer: _Layer, groups: int) -> _NormedBlock | _PlainBlock:
    return _NormedBlock(a, layer, groups, eps=1e-5) if groups else _PlainBlock(a)


def _weights(net: ConvNet, tensors: Sequence[Tensor]) -> _Weights:
    """Sort tensors in the order of ``named_parameters`` by layer."""
    size = 4 if net.groups else 2
    blocks = []
    for i in range(net.depth):
        weight, bias, *affine = tensors[i * size : (i + 1) * size]
        scale, shift = affine if affine else (None, None)
        blocks.append(_Layer(_channels_last(weight.detach()), bias.detach(), scale, shift))
    head_weight, head_bias = tensors[net.depth * size :]
    return _Weights(blocks, head_weight.detach(), head_bias.detach())


def _chunks(net: ConvNet, images: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    n, _, height, width = images.shape
    one_map = net.width * height * width * images.element_size()
    size = n if images.device.type == "cuda" else max(1, CACHE_BYTES // one_map)
    count = -(-n // size)
    size = -(-n // count)  # as even as can be
    return zip(torch.split(images, size), torch.split(targets, size), strict=True)


def _plus(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    return list(torch._foreach_add(a, b)) if a else b


def _mean(a: Tensor) -> Tensor:
    return a.mean((2, 3), keepdim=True)


def _unpool(d_p: Tensor, like: Tensor) -> Tensor:
    """Return the adjoint of avg_pool2d(., 2)."""
    out: Tensor = _ops.avg_pool2d_backward(d_p, like, [2, 2], [2, 2], [0, 0], False, True, None)
    return out


def _convolve_back_to_images(d_maps: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Return two convolutions' adjoints in their input of few channels, added.

    By matrix products, taps added up: convolutions to one or three channels are several times
    slower, and so are tall products.
    """
    n, _, height, width = d_maps[0].shape
    channels = weights[0].shape[1]
    products = [
        weight.flatten(1).t() @ d_a.permute(0, 2, 3, 1).flatten(0, 2).t()
        for d_a, weight in zip(d_maps, weights, strict=True)
    ]
    taps = products[0].add_(products[1]).view(channels, 3, 3, n, height, width)
    out = taps.new_zeros(channels, n, height + 2, width + 2)
    for i in range(3):
        for j in range(3):
            out[:, :, i : i + height, j : j + width] += taps[:, i, j]
    return out[:, :, 1:-1, 1:-1].transpose(0, 1)


def _channels_last(t: Tensor) -> Tensor:
    # Not ``contiguous``: it leaves a map of one channel as it is, which convolutions then take for
    # channels first.
    return torch.empty_like(t, memory_format=torch.channels_last).copy_(t)
