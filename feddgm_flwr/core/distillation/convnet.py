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
last, which the convolutions want; what lies between them (``_Normed``) in few passes, since behind
a pool nearly all is linear in three pooled maps; and few images at a time, the fewer the larger
their maps, so that what one pass writes is still in the processor's cache when the next reads it.
Convolution's bias under a norm of single channels has gradient zero, exactly.

Knows nothing of trajectories, augmentation or clients. Axes: ``n`` images, ``c`` channels, ``h w``
positions of a layer's map, ``k`` classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from feddgm_flwr.core.distillation.activation import Normed, Plain, activation
from feddgm_flwr.core.distillation.student import Pulled, Trace, held_bytes
from feddgm_flwr.core.models import ConvNet
from feddgm_flwr.core.params import Params

CHUNK_BYTES = 16 * 2**20
"""Size of the first block's map up to which images go through the network together on a CPU."""
PIECE_BYTES = 4 * 2**20
"""Size of any block's map up to which images go through the block together on a CPU."""

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


@dataclass(frozen=True)
class _LayerAlong:
    """A block's direction v; v_W and W joined for the two convolutions that are added.

    Attributes
    ----------
    over_inputs
        What acts on h and h_dot.
    over_outputs
        W and v_W, whose adjoints act on d_a_dot and d_a.
    """

    v: _Layer
    over_inputs: Tensor
    over_outputs: Tensor


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
        return self._adjoint(_joined(outputs), _joined(inputs), weight, 1)

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
    compiled
        Fuse what lies between convolutions by ``torch.compile``.
    """

    def __init__(
        self, net: ConvNet, precision: torch.dtype | None = None, *, compiled: bool = False
    ) -> None:
        self._net = net
        self._operations = _Operations(_Convolution(precision), net.groups, compiled)

    def step(
        self, params: Params, images: Tensor, targets: Tensor, *, keep: bool
    ) -> tuple[list[Tensor], Trace]:
        """Return g and its trace."""
        trace = _StepTrace(self._net, self._operations, params, images.detach(), targets.detach())
        return trace.evaluate(keep=keep), trace


@dataclass(frozen=True)
class _Operations:
    """What every block is made of."""

    convolution: _Convolution
    groups: int
    compiled: bool

    def activation(self, a: Tensor, layer: _Layer) -> Normed | Plain:
        return activation(a, layer.scale, layer.shift, self.groups, compiled=self.compiled)


class _StepTrace:
    """A step's trace, a chunk of images at a time."""

    def __init__(
        self,
        net: ConvNet,
        operations: _Operations,
        params: Params,
        images: Tensor,
        targets: Tensor,
    ) -> None:
        self._net, self._operations = net, operations
        self._at = _weights(net, list(params.values()))
        one_map = net.width * images[0, 0].numel() * images.element_size()
        chunks = (_split(t, CHUNK_BYTES // one_map) for t in (images, targets))
        self._chunks = list(zip(*chunks, strict=True))
        self._total = len(images)
        self._kept: list[_Backprop] = []

    @property
    def nbytes(self) -> int:
        """Memory of the maps that are kept."""
        return held_bytes([t for chunk in self._kept for t in chunk.held()])

    @torch.no_grad()
    def evaluate(self, *, keep: bool) -> list[Tensor]:
        gradient: list[Tensor] = []
        for images, targets in self._chunks:
            chunk = self._backprop(images, targets)
            gradient = _plus(gradient, chunk.gradient())
            if keep:
                self._kept.append(chunk)
        return gradient

    @torch.no_grad()
    def pull(self, direction: Sequence[Tensor], *, through: bool) -> Pulled:
        v = _weights(self._net, direction)
        blocks = [_along(*pair) for pair in zip(self._at.blocks, v.blocks, strict=True)]
        slope, params = torch.zeros_like(direction[0].flatten()[0]), list[Tensor]()
        d_images, d_targets = [], []
        for images, targets in self._chunks:
            chunk = self._kept.pop(0) if self._kept else self._backprop(images, targets)
            pulled = chunk.pull(v, blocks, through=through)
            slope = slope + pulled.slope
            d_images.append(pulled.images)
            d_targets.append(pulled.targets)
            params = _plus(params, pulled.params or [])
        return Pulled(slope, torch.cat(d_images), torch.cat(d_targets), params if through else None)

    def _backprop(self, images: Tensor, targets: Tensor) -> "_Backprop":
        return _Backprop(self._net, self._operations, self._at, images, targets, self._total)


class _Backprop:
    """Forward and backward through a chunk of images; then, on asking, along a direction.

    Notation, per block: h its input, a = W * h + b, p what leaves the pool; ``d_`` is the loss's
    derivative, so ``d_p`` = dloss/dp. At the head: f the features, z the logits.
    """

    def __init__(
        self,
        net: ConvNet,
        operations: _Operations,
        at: _Weights,
        images: Tensor,
        targets: Tensor,
        total: int,
    ) -> None:
        self._at, self._std, self._targets, self._total = at, net.normalize.std, targets, total
        h = _channels_last((images - net.normalize.mean) / self._std)
        self._blocks: list[_Block] = []
        for layer in at.blocks:
            self._blocks.append(_Block(operations, layer, h))
            h = self._blocks[-1].pooled()
        self._shape = h.shape
        self._features = h.flatten(1)
        logits = torch.addmm(at.head_bias, self._features, at.head_weight.t())
        self._prob = logits.softmax(1)
        self._mass = targets.sum(1, keepdim=True)
        self._d_logits = (self._prob * self._mass - targets) / total

        d_p = self._unflatten(self._d_logits @ at.head_weight)
        for block in reversed(self._blocks[1:]):
            d_p = block.backward(d_p)
        self._blocks[0].backward_to_maps(d_p)

    def held(self) -> list[Tensor]:
        """Return the tensors that wait for ``pull``."""
        maps = [t for block in self._blocks for t in block.held()]
        return [*maps, self._features, self._prob]

    def gradient(self) -> list[Tensor]:
        """Return g's part of these images, in the order of the parameters."""
        parts = [part for block in self._blocks for part in block.gradient()]
        return [*parts, self._d_logits.t() @ self._features, self._d_logits.sum(0)]

    def pull(self, v: _Weights, along: list[_LayerAlong], *, through: bool) -> Pulled:
        """Return <g, v>'s part of these images and its derivatives."""
        at = self._at
        h_dot: Tensor | None = None  # the images do not move with v
        for block, layer in zip(self._blocks, along, strict=True):
            h_dot = block.forward_dot(h_dot, layer)
        assert h_dot is not None
        f_dot = h_dot.flatten(1)
        z_dot = torch.addmm(v.head_bias, f_dot, at.head_weight.t())
        z_dot.addmm_(self._features, v.head_weight.t())

        # The head: d_z = (P mass - Y) / n, with P = softmax(z).
        slope = (self._d_logits * z_dot).sum()
        mean_dot = (self._prob * z_dot).sum(1, keepdim=True)
        d_targets = (mean_dot - z_dot) / self._total
        d_z_dot = self._prob * (z_dot - mean_dot) * self._mass / self._total

        d_p_dot = self._unflatten(d_z_dot @ at.head_weight + self._d_logits @ v.head_weight)
        for block, layer in zip(reversed(self._blocks[1:]), reversed(along[1:]), strict=True):
            d_p_dot = block.backward_dot(d_p_dot, layer)
        d_images = self._blocks[0].backward_dot_to_images(d_p_dot, along[0]) / self._std
        if not through:
            return Pulled(slope, d_images, d_targets, None)
        d_head = d_z_dot.t() @ self._features + self._d_logits.t() @ f_dot
        params = [part for block in self._blocks for part in block.gradient_dot()]
        return Pulled(slope, d_images, d_targets, [*params, d_head, d_z_dot.sum(0)])

    def _unflatten(self, flat: Tensor) -> Tensor:
        return _channels_last(flat.view(self._shape))


class _Block:
    """A block on a chunk of images, in pieces of few."""

    def __init__(self, operations: _Operations, layer: _Layer, h: Tensor) -> None:
        one_map = len(layer.weight) * h[0, 0].numel() * h.element_size()
        parts = _split(h, PIECE_BYTES // one_map)
        self._pieces = [_Piece(operations, layer, part) for part in parts]

    def pooled(self) -> Tensor:
        """Return p."""
        return _joined([piece.pooled for piece in self._pieces])

    def backward(self, d_p: Tensor) -> Tensor:
        """Return d_h."""
        return self._each(_Piece.backward, d_p)

    def backward_to_maps(self, d_p: Tensor) -> None:
        """Go back as far as to the parameters."""
        for piece, part in self._with_parts(d_p):
            piece.backward_to_maps(part)

    def gradient(self) -> list[Tensor]:
        """Return the parameters' part of g."""
        return self._sum(_Piece.gradient)

    def forward_dot(self, h_dot: Tensor | None, along: _LayerAlong) -> Tensor:
        """Return p_dot."""
        if h_dot is None:
            return _joined([piece.forward_dot(None, along) for piece in self._pieces])
        return self._each(lambda piece, part: piece.forward_dot(part, along), h_dot)

    def backward_dot(self, d_p_dot: Tensor, along: _LayerAlong) -> Tensor:
        """Return d_h_dot."""
        return self._each(lambda piece, part: piece.backward_dot(part, along), d_p_dot)

    def backward_dot_to_images(self, d_p_dot: Tensor, along: _LayerAlong) -> Tensor:
        """Return d_h_dot of a block whose input has few channels."""
        return self._each(lambda piece, part: piece.backward_dot_to_images(part, along), d_p_dot)

    def gradient_dot(self) -> list[Tensor]:
        """Return the parameters' part of d<g, v>."""
        return self._sum(_Piece.gradient_dot)

    def held(self) -> list[Tensor]:
        """Return the tensors that wait for the way along a direction."""
        return [t for piece in self._pieces for t in piece.held()]

    def _with_parts(self, t: Tensor) -> Iterator[tuple["_Piece", Tensor]]:
        sizes = [len(piece.pooled) for piece in self._pieces]
        return zip(self._pieces, torch.split(t, sizes), strict=True)

    def _each(self, method: Callable[["_Piece", Tensor], Tensor], t: Tensor) -> Tensor:
        return _joined([method(piece, part) for piece, part in self._with_parts(t)])

    def _sum(self, method: Callable[["_Piece"], list[Tensor]]) -> list[Tensor]:
        parts: list[Tensor] = []
        for piece in self._pieces:
            parts = _plus(parts, method(piece))
        return parts


class _Piece:
    """A block on a few images."""

    def __init__(self, operations: _Operations, layer: _Layer, h: Tensor) -> None:
        self._convolution, self._weight, self._h = operations.convolution, layer.weight, h
        a = self._convolution.forward(h, layer.weight, layer.bias)
        self._act = operations.activation(a, layer)
        self._h_dot: Tensor | None = None
        self.pooled = self._act.pooled

    def backward(self, d_p: Tensor) -> Tensor:
        self.backward_to_maps(d_p)
        return self._convolution.back(self._d_a, self._weight, self._h)

    def backward_to_maps(self, d_p: Tensor) -> None:
        self._d_a = self._act.backward(d_p)

    def gradient(self) -> list[Tensor]:
        d_weight = self._convolution.weight_gradient([self._h], [self._d_a], self._weight)
        return [d_weight, self._act.bias_gradient(self._d_a), *self._act.affine_gradient()]

    def forward_dot(self, h_dot: Tensor | None, along: _LayerAlong) -> Tensor:
        # a_dot = v_W * h + W * h_dot + v_b
        self._h_dot, v = h_dot, along.v
        if h_dot is None:
            a_dot = self._convolution.forward(self._h, v.weight, v.bias)
        else:
            both = torch.cat([self._h, h_dot], 1)
            a_dot = self._convolution.forward(both, along.over_inputs, v.bias)
        return self._act.forward_dot(a_dot, v.scale, v.shift)

    def backward_dot(self, d_p_dot: Tensor, along: _LayerAlong) -> Tensor:
        # d_h_dot = W^T * d_a_dot + v_W^T * d_a
        self._d_a_dot = self._act.backward_dot(d_p_dot)
        both = torch.cat([self._d_a_dot, self._d_a], 1)
        return self._convolution.back(both, along.over_outputs, self._h)

    def backward_dot_to_images(self, d_p_dot: Tensor, along: _LayerAlong) -> Tensor:
        self._d_a_dot = self._act.backward_dot(d_p_dot)
        return _convolve_back_to_images([self._d_a_dot, self._d_a], [self._weight, along.v.weight])

    def gradient_dot(self) -> list[Tensor]:
        ins, outs = [self._h], [self._d_a_dot]
        if self._h_dot is not None:
            ins, outs = [self._h_dot, self._h], [self._d_a, self._d_a_dot]
        d_weight = self._convolution.weight_gradient(ins, outs, self._weight)
        return [d_weight, self._act.bias_gradient(self._d_a_dot), *self._act.affine_gradient_dot()]

    def held(self) -> list[Tensor]:
        return [self._h, self._d_a, *self._act.held()]


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


def _along(at: _Layer, v: _Layer) -> _LayerAlong:
    return _LayerAlong(v, torch.cat([v.weight, at.weight], 1), torch.cat([at.weight, v.weight]))


def _split(t: Tensor, size: int) -> Sequence[Tensor]:
    """Return parts of at most ``size`` images, as even as can be; one part on a GPU."""
    if t.device.type == "cuda":
        return [t]
    count = -(-len(t) // max(1, size))
    return torch.split(t, -(-len(t) // count))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _plus(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """Return a + b, in place of a; b where a is empty."""
    if a and b:
        torch._foreach_add_(a, b)
    return a or b


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
