"""Products on the simulated array as torch operators with straight-through gradients.

Forward: activations are quantised per tensor, weights per output channel,
symmetric; the array multiplies the codes, struck by the faults of the trial; the
sums, multiplied by both scales, are the output. Backward: as if the quantised
product had been computed in real numbers, rounding passed straight through
(Y. Bengio, N. Leonard, A. Courville, arXiv 1308.3432). Activation codes, of both
operands where both are activations, are those that the array read, errors
included. So are weights that are wrong for the whole pass, stuck cells say, which get
no gradient (as adSAF has it, arXiv 2003.10375); weights that errors strike for some
images only count as the correct ones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fsim.errors import ConfigError, MappingError

from ..ops import code_dtype
from .session import find


def activation_scale(x: Tensor, signed: bool, bits: int = 8) -> Tensor:
    """() float32: real value of one code, so that the largest |x| is the largest code."""
    top = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1
    largest = x.detach().abs().amax().float() if x.numel() else x.new_zeros(())
    # What is not finite stays so, for `_product` to see.
    return torch.where(largest == 0, torch.ones_like(largest), largest / top)


def weight_scale(weight: Tensor, bits: int = 8) -> Tensor:
    """(o,) float32, by output channel."""
    top = (1 << (bits - 1)) - 1
    largest = weight.detach().reshape(len(weight), -1).abs().amax(1).float()
    return torch.where(largest == 0, torch.ones_like(largest), largest / top)


def quantised(weight: Tensor, scale: Tensor) -> Tensor:
    """Weights as the array holds them, in real values."""
    shape = (-1, *[1] * (weight.ndim - 1))
    return (weight / scale.reshape(shape)).round() * scale.reshape(shape)


def _codes(weight: Tensor, scale: Tensor) -> Tensor:
    """int64 codes of weights."""
    shape = (-1, *[1] * (weight.ndim - 1))
    return (weight.detach().float() / scale.reshape(shape)).round().to(torch.int64)


@torch.library.custom_op("fsim::weights_read", mutates_args=())
def weights_read(weight: Tensor, session: int, site: int, trial: int, images: int) -> Tensor:
    """Weights as the array read them for all images of a pass: real values, float32."""
    held = find(session)
    scale = weight_scale(weight, held.accel.operand_bits)
    codes = _codes(weight, scale)
    read = held.weights_read(site, trial, images, codes.cpu().numpy())
    shape = (-1, *[1] * (weight.ndim - 1))
    return torch.from_numpy(read).to(weight.device).float() * scale.reshape(shape)


@weights_read.register_fake
def _(weight, session, site, trial, images):
    return torch.empty_like(weight, dtype=torch.float32)


def _held(weight: Tensor, where: tuple[int, int, int, int], bits: int) -> tuple[Tensor, Tensor]:
    """(weights that the products of a pass read, bool: those that are what was written)."""
    written = quantised(weight.detach().float(), weight_scale(weight, bits))
    read = weights_read(weight.detach(), *where)
    return read, read == written


def _product(x_held: Tensor, x_scale, weight: Tensor, bias, signed, session, site, trial, out):
    """Fill `out` (float32, in the site's layout); the codes that were read."""
    held = find(session)
    source = held.sites[site].input
    if source.signed != signed:
        raise MappingError(f"site {site} must be {'un' * (not source.signed)}signed")
    w_scale = weight_scale(weight, held.accel.operand_bits)
    _check_finite(x_scale, "what it reads", held.sites[site].name)
    _check_finite(w_scale, "its weights", held.sites[site].name)
    codes = _codes(weight, w_scale)
    units = np.zeros(len(weight), np.int64)
    if bias is not None:
        top = 2.0 ** (held.accel.acc_bits - 1)
        real = bias.detach().double() / (x_scale.double() * w_scale.double())
        units = real.round().clamp(-top, top - 1).to(torch.int64).numpy()
    x = x_held.detach().numpy()
    _check_sign(x, signed, held.sites[site].name)
    read = held.product(
        site, trial, x, float(x_scale), codes.numpy(), w_scale.numpy(), units, out.numpy()
    )
    return torch.from_numpy(read)


def _check_finite(scale: Tensor, what: str, name: str) -> None:
    """Scales are of the largest value: not finite if that is not."""
    if not torch.isfinite(scale).all():
        raise ConfigError(
            f"{what} must be finite in {name}, got NaN or infinity: the images are not, or "
            "training has diverged (a smaller learning rate or fewer faults may help)"
        )


def _check_sign(x: np.ndarray, signed: bool, name: str) -> None:
    if not signed and x.size and x.min() < 0:
        raise MappingError(
            f"{name} must read what is never negative, as on the calibration images, got "
            f"{x.min()}; add images on which it is"
        )


def _bits(session: int) -> int:
    """Width of the machine's codes."""
    return find(session).accel.operand_bits


def _code_type(session: int, signed: bool) -> torch.dtype:
    return getattr(torch, str(code_dtype(_bits(session), signed)))


def _last(x: Tensor) -> Tensor:
    """(n, c, h, w) as (n, h, w, c), contiguous float32 on the CPU."""
    return x.detach().float().cpu().permute(0, 2, 3, 1).contiguous()


def conv2d_forward(x, weight, bias, scale, stride, padding, dilation, groups, signed, session,
                   site, trial):  # fmt: skip
    """(output (n, o, oh, ow), codes (n, h, w, c)) of a convolution on the array."""
    out = _conv_out(x, weight, stride, padding, dilation)
    held = out.permute(0, 2, 3, 1)
    made = held if held.device.type == "cpu" else torch.empty_like(held, device="cpu")
    codes = _product(_last(x), scale, weight.cpu(), bias, signed, session, site, trial, made)
    if made is not held:
        held.copy_(made)
    return out, codes.to(x.device)


def _conv_out(x, weight, stride, padding, dilation) -> Tensor:
    sizes = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i]
        + 1
        for i in (0, 1)
    ]
    return torch.empty(
        (x.shape[0], weight.shape[0], *sizes),
        dtype=torch.float32,
        device=x.device,
        memory_format=torch.channels_last,
    )


def conv2d_backward(gradient, codes, held, scale, stride, padding, dilation, groups, needs):
    """Gradients of x, weight and bias (None where not needed); held: weights as read."""
    x = codes.permute(0, 3, 1, 2).to(torch.float32) * scale
    return torch.ops.aten.convolution_backward(
        gradient.float(), x, held, [len(held)], stride, padding, dilation, False, [0, 0], groups,
        list(needs),
    )  # fmt: skip


@torch.library.custom_op("fsim::conv2d", mutates_args=())
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    signed: bool,
    session: int,
    site: int,
    trial: int,
) -> tuple[Tensor, Tensor]:
    """Convolution on the array: (output (n, o, oh, ow) float32, codes that it read).

    x, weight, bias  as of torch's conv2d; scale () float32 of x's codes
    signed           whether x's codes are
    session, site    `Session.handle` and the number of the product in it
    trial            which draw of the fault model; below 0 none
    """
    return conv2d_forward(x, weight, bias, scale, stride, padding, dilation, groups, signed,
                          session, site, trial)  # fmt: skip


@conv2d.register_fake
def _(x, weight, bias, scale, stride, padding, dilation, groups, signed, session, site, trial):
    kind = _code_type(session, signed)
    codes = x.new_empty((x.shape[0], *x.shape[2:], x.shape[1]), dtype=kind)
    return _conv_out(x, weight, stride, padding, dilation), codes


def _conv_context(ctx, inputs, output):
    x, weight, bias, scale, stride, padding, dilation, groups, _, *where = inputs
    ctx.save_for_backward(output[1], weight, scale)
    ctx.mark_non_differentiable(output[1])
    ctx.geometry, ctx.bits = (stride, padding, dilation, groups), _bits(where[0])
    ctx.where = (*where, len(x))
    ctx.has_bias, ctx.kinds = bias is not None, (x.dtype, weight.dtype)


def _conv_gradients(ctx, gradient, _=None):
    codes, weight, scale = ctx.saved_tensors
    needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1],
             ctx.has_bias and ctx.needs_input_grad[2])  # fmt: skip
    held, right = _held(weight, ctx.where, ctx.bits)
    g_x, g_w, g_b = conv2d_backward(gradient, codes, held, scale, *ctx.geometry, needs)
    g_x = g_x.to(ctx.kinds[0]) if needs[0] else None
    g_w = (g_w * right).to(ctx.kinds[1]) if needs[1] else None
    return g_x, g_w, g_b if needs[2] else None, *[None] * 9


conv2d.register_autograd(_conv_gradients, setup_context=_conv_context)


class ArrayConv2d(torch.autograd.Function):
    """`fsim::conv2d` as a Function, to subclass: override `backward` for other gradients."""

    @staticmethod
    def forward(*inputs):
        return conv2d_forward(*inputs)

    setup_context = staticmethod(_conv_context)

    @staticmethod
    def backward(ctx, gradient, _):
        return _conv_gradients(ctx, gradient)


def linear_forward(x, weight, bias, scale, signed, session, site, trial):
    """(output (..., o), codes of x) of a linear layer on the array."""
    out = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)
    held = x.detach().float().cpu().contiguous()
    codes = _product(held, scale, weight.cpu(), bias, signed, session, site, trial, out)
    return out.to(x.device), codes.to(x.device)


@torch.library.custom_op("fsim::linear", mutates_args=())
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    signed: bool,
    session: int,
    site: int,
    trial: int,
) -> tuple[Tensor, Tensor]:
    """Linear layer on the array, as `conv2d`; x (n, ..., f)."""
    return linear_forward(x, weight, bias, scale, signed, session, site, trial)


@linear.register_fake
def _(x, weight, bias, scale, signed, session, site, trial):
    out = x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)
    return out, x.new_empty(x.shape, dtype=_code_type(session, signed))


def _linear_context(ctx, inputs, output):
    x, weight, bias, scale, _, *where = inputs
    ctx.save_for_backward(output[1], weight, scale)
    ctx.mark_non_differentiable(output[1])
    ctx.bits, ctx.where = _bits(where[0]), (*where, len(x))
    ctx.has_bias, ctx.kinds = bias is not None, (x.dtype, weight.dtype)


def _linear_gradients(ctx, gradient, _=None):
    codes, weight, scale = ctx.saved_tensors
    gradient = gradient.float()
    held, right = _held(weight, ctx.where, ctx.bits)
    x = codes.to(torch.float32) * scale
    flat = gradient.reshape(-1, gradient.shape[-1])
    g_x = (gradient @ held).to(ctx.kinds[0]) if ctx.needs_input_grad[0] else None
    g_w = (flat.T @ x.reshape(-1, x.shape[-1]) * right).to(ctx.kinds[1])
    g_b = flat.sum(0) if ctx.has_bias else None
    return g_x, g_w if ctx.needs_input_grad[1] else None, g_b, *[None] * 5


linear.register_autograd(_linear_gradients, setup_context=_linear_context)


class ArrayLinear(torch.autograd.Function):
    """`fsim::linear` as a Function, to subclass."""

    @staticmethod
    def forward(*inputs):
        return linear_forward(*inputs)

    setup_context = staticmethod(_linear_context)

    @staticmethod
    def backward(ctx, gradient, _):
        return _linear_gradients(ctx, gradient)


def matmul_forward(a, b, a_scale, b_scale, signed, session, site, trial):
    """(output (n, ..., m, p), codes of a, codes of b) of a product on the array."""
    held = find(session)
    name, shapes = held.sites[site].name, [tuple(s.shape) for s in held.sites[site].inputs]
    got = [tuple(a.shape[1:]), tuple(b.shape[1:])]
    if got != shapes or len(a) != len(b):
        raise MappingError(
            f"{name} must read {shapes[0]} and {shapes[1]} of each image, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}"
        )
    if held.sites[site].input.signed != signed:
        raise MappingError(f"site {site} must be {'un' * signed}signed")
    read = [x.detach().float().cpu().contiguous().numpy() for x in (a, b)]
    _check_sign(read[0], signed, name)
    for scale in (a_scale, b_scale):
        _check_finite(scale, "what it reads", name)
    out = torch.empty((*a.shape[:-1], b.shape[-1]), dtype=torch.float32)
    scales = float(a_scale), float(b_scale)
    codes = held.matmul(site, trial, *read, scales, out.numpy())
    return out.to(a.device), *(torch.from_numpy(mine).to(a.device) for mine in codes)


@torch.library.custom_op("fsim::matmul", mutates_args=())
def matmul(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    signed: bool,
    session: int,
    site: int,
    trial: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Product of two activations on the array: (output, codes of a, codes of b).

    a, b              (n, ..., m, k) and (n, ..., k, p), all axes but the last two equal;
                      b is held where weights are and its codes are signed
    a_scale, b_scale  () float32 of their codes
    signed            whether a's codes are
    The rest as of `conv2d`.
    """
    return matmul_forward(a, b, a_scale, b_scale, signed, session, site, trial)


@matmul.register_fake
def _(a, b, a_scale, b_scale, signed, session, site, trial):
    out = a.new_empty((*a.shape[:-1], b.shape[-1]), dtype=torch.float32)
    kinds = _code_type(session, signed), _code_type(session, True)
    return out, a.new_empty(a.shape, dtype=kinds[0]), b.new_empty(b.shape, dtype=kinds[1])


def _matmul_context(ctx, inputs, output):
    a, b, a_scale, b_scale, *_ = inputs
    ctx.save_for_backward(output[1], output[2], a_scale, b_scale)
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.kinds = a.dtype, b.dtype


def _matmul_gradients(ctx, gradient, *_):
    a_codes, b_codes, a_scale, b_scale = ctx.saved_tensors
    gradient = gradient.float()
    g_a = g_b = None
    if ctx.needs_input_grad[0]:
        b = b_codes.to(torch.float32) * b_scale
        g_a = (gradient @ b.transpose(-2, -1)).to(ctx.kinds[0])
    if ctx.needs_input_grad[1]:
        a = a_codes.to(torch.float32) * a_scale
        g_b = (a.transpose(-2, -1) @ gradient).to(ctx.kinds[1])
    return g_a, g_b, *[None] * 6


matmul.register_autograd(_matmul_gradients, setup_context=_matmul_context)


class ArrayMatMul(torch.autograd.Function):
    """`fsim::matmul` as a Function, to subclass."""

    @staticmethod
    def forward(*inputs):
        return matmul_forward(*inputs)

    setup_context = staticmethod(_matmul_context)

    @staticmethod
    def backward(ctx, gradient, *_):
        return _matmul_gradients(ctx, gradient)


for _operator in ("fsim::conv2d", "fsim::linear", "fsim::matmul"):
    for _device in ("cpu", "cuda"):
        # Codes are made from float32, whatever autocast asks of torch's own products.
        torch.library.register_autocast(_operator, _device, torch.float32)
