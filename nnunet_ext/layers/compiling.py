"""torch.compile where it works, torch as ever where it does not."""

from collections.abc import Callable
from typing import Any

import torch


def fall_back_to_eager(compiled: Any, say: Callable[[str], object]) -> None:
    """Makes a module from `torch.compile` go on uncompiled, with one line, where its compilation fails.

    What is not the compilation's fault (the plain network fails too, memory is out) raises as ever.
    """
    run = compiled.forward
    plain = compiled._orig_mod

    def forward(*args: Any, **kwargs: Any) -> Any:
        if compiled.forward is not forward:  # an earlier call gave up
            return compiled.forward(*args, **kwargs)
        try:
            return run(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            result = plain(*args, **kwargs)
            compiled.forward = plain.forward
            cause = getattr(error, "inner_exception", None) or error  # dynamo wraps what its backends raise
            text = str(cause).strip().splitlines() or [""]
            say(
                f"torch.compile failed ({type(cause).__name__}: {text[0]}), so {type(plain).__name__} runs without it, "
                f"which takes longer. nnUNet_compile=f says so from the start, nnUNet_compile=t makes this an error."
            )
            return result

    compiled.forward = forward
