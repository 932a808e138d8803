"""The one error that we raise for what a user can put right."""

import sys
from types import TracebackType


class ConfigurationError(ValueError):
    """Bad input: the message says what was wrong, what was expected and what to do."""


def show_configuration_errors_as_text() -> None:
    """Lets the stock commands end with the sentence of a `ConfigurationError` instead of its traceback (exit code 1).

    Every other error goes to the hook that was there before.
    """
    before = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, ConfigurationError):
            print(f"\nnnunet_ext: {error}", file=sys.stderr)
        else:
            before(kind, error, traceback)

    excepthook.nnunet_ext = True  # type: ignore[attr-defined]
    if not hasattr(before, "nnunet_ext"):
        sys.excepthook = excepthook
