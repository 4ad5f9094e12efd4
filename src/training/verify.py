"""Finds faulty memory and processors: gradients are computed twice, and every bit must be the same."""

from collections.abc import Callable

import torch

from runtime.errors import RunError


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """A copy as bytes: NaN is equal to itself then."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def compute_twice(compute: Callable[[], torch.Tensor], model: torch.nn.Module) -> torch.Tensor:
    """Calls `compute` twice on the same state and compares what comes of it.

    Args:
        compute: writes the gradients of the model anew and returns a tensor.
        model: its buffers, such as the statistics of batch norms, may change too.

    Returns:
        What `compute` returned.

    Raises:
        RunError: a bit differs.
    """
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = []
    for _ in range(2):
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
        result = compute()
        grads = {f"the gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append({"the loss": result, **grads, **dict(model.named_buffers())})
        found[-1] = {name: _bits(value) for name, value in found[-1].items()}
    first, second = found
    differing = [name for name, bits in first.items() if not torch.equal(bits, second[name])]
    if differing:
        raise RunError(
            f"a step that was computed twice gave two results ({differing[0]}, {len(differing)} of {len(first)} "
            "differ): memory or processor of this machine is faulty; resume from the last checkpoint on another one"
        )
    return result
