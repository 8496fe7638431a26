"""Batch norm over the images of all processes, on GPUs (PyTorch's) and on CPUs (here)."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from util import distributed


def _per_channel(x: torch.Tensor) -> torch.Tensor:
    """Sums (C,) of x (B, C, ...) as float64, and added so where x is float64 or contiguous."""
    wide = x.dtype == torch.float64 or x.is_contiguous()
    kind = torch.float64 if wide else torch.float32  # channels-last: 12 times faster
    return x.sum([0, *range(2, x.ndim)], dtype=kind).double()


class _Normalize(torch.autograd.Function):
    """Batch norm of x (B, C, ...) with mean and variance over all processes, B = 0 included.

    Sums are float64, and rounded where PyTorch's own batch norm rounds: for contiguous x the result
    is that of one process to the last bit, so that no ReLU behind it switches.

    Returns the result, and (C,) each the mean, the unbiased variance.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        kind, shape = weight.dtype, (-1, *[1] * (x.ndim - 2))
        count = weight.new_tensor([x.numel() // x.shape[1]], dtype=torch.float64)
        sums = torch.cat([_per_channel(x), count])
        dist.all_reduce(sums)
        count = float(sums[-1])
        mean = (sums[:-1] / count).to(kind)
        squares = _per_channel((x.to(kind) - mean.view(shape)).square_())
        dist.all_reduce(squares)
        squares = squares.to(kind)
        inverse = ((squares / count).double() + eps).rsqrt().to(kind)
        slope = inverse * weight
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.count = count
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        y = F.batch_norm(x, zero, one, slope, bias - mean * slope, eps=0.0)  # slope x + the rest
        variance = squares / (count - 1)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx, gradient, *_):
        x, weight, mean, inverse = ctx.saved_tensors
        shape = (-1, *[1] * (x.ndim - 2))
        centred = (x.to(mean.dtype) - mean.view(shape)).mul_(gradient)
        sums = torch.stack([_per_channel(centred), _per_channel(gradient)])
        to_weight, to_bias = (sums[0] * inverse).to(mean.dtype), sums[1].to(mean.dtype, copy=True)
        dist.all_reduce(sums)
        fall = sums[0].to(mean.dtype) * inverse * inverse / ctx.count
        level = (sums[1] / ctx.count).to(mean.dtype)
        slope = inverse * weight
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        shift = (mean * fall - level) * slope
        rest = F.batch_norm(x, zero, one, -fall * slope, shift, eps=0.0)  # slope x + the rest
        to_x = torch.addcmul(rest, gradient, slope.view(shape))
        return to_x.to(x.dtype), to_weight, to_bias, None


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """nn.SyncBatchNorm on a CPU, for which PyTorch has none; of (B, C) and (B, C, H, W)."""

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def _check_input_dim(self, x):
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        if x.ndim == 2:  # (B, C), few numbers: all are gathered, as `interleaved` dealt them out
            whole = x.new_zeros(int(distributed.total(torch.tensor(len(x)))), x.shape[1])
            own = slice(distributed.rank(), None, distributed.world_size())
            whole[own] = x
            return super().forward(distributed.total(whole))[own]
        y, mean, variance = _Normalize.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
            self.num_batches_tracked.add_(1)
        return y


class _SyncBatchNorm(nn.SyncBatchNorm):
    """PyTorch's, whose processes without an image speak float32 too, whatever the layers are in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.numel() else super().forward(x.float()).to(x.dtype)


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Lets every batch norm inside take the images of all processes; state-dict keys stay.

    Args:
        module: changed in place.
        device: on which it runs.
    """
    kind = CpuSyncBatchNorm if device.type == "cpu" else _SyncBatchNorm
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, _replaced(child, kind))
        else:
            synchronize_batch_norm(child, device)


def _replaced(norm, kind: type[nn.modules.batchnorm._BatchNorm]):
    """Of another kind, with the parameters and buffers of `norm`."""
    new = kind(norm.num_features, norm.eps, norm.momentum).to(norm.weight.device)
    new.weight, new.bias = norm.weight, norm.bias
    for name, value in norm.named_buffers(recurse=False):
        setattr(new, name, value)
    if after := list(norm.children()):  # timm's layers go on with drop-out and an activation
        new.after = nn.Sequential(*after)
        new.register_forward_hook(lambda module, _, y: module.after(y))
    return new.train(norm.training)
