"""Errors of FUSE handlers: any exception but FUSEError in one would end the mount for everybody."""

from __future__ import annotations

import errno
import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any

from .fuse import FUSEError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


def guarded(cls: type) -> type:
    """Make the public coroutines of `cls` answer OSError as its errno; others as EIO, logged.

    ENOENT is ESTALE where `cls.gone()` says that all names are.
    """
    for name, method in list(vars(cls).items()):
        if inspect.iscoroutinefunction(method) and not name.startswith("_"):
            setattr(cls, name, _guard(method))
    return cls


def _guard(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    def is_gone(operations: Any) -> bool:
        return hasattr(operations, "gone") and operations.gone()

    has_answer = method.__name__ != "forget"

    @functools.wraps(method)
    async def guard(*args: Any) -> Any:
        try:
            return await method(*args)
        except FUSEError:
            raise
        except OSError as error:
            log.debug("%s%r: %s", method.__name__, args[1:], error)
            code = error.errno or errno.EIO
            if code == errno.ENOENT and is_gone(args[0]):
                code = errno.ESTALE
        except Exception:
            log.exception("%s%r failed; answered EIO", method.__name__, args[1:])
            code = errno.EIO
        if has_answer:
            raise FUSEError(code)
        return None

    return guard
