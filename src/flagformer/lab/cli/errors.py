"""Error messages for users: at most one screen on standard error, an exit status, no traceback.

Status 2: the command or a file of the user's is wrong. Status 1: something failed, such as a full disk.
Status 130: interrupted. `FLAGFORMER_TRACEBACK=1` shows the traceback as well, for those who look for the
fault in this program.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator

import typer

MOST_LINES = 24
MOST_CHARACTERS = 4000
WRONG_PATH = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Convert the errors of the block to a message and `SystemExit`."""
    try:
        yield
    except (typer.Exit, typer.Abort):  # both are RuntimeErrors
        raise
    except KeyboardInterrupt as error:
        leave(str(error) or "stopped", 130, label="")
    except ValueError as error:
        leave(str(error), 2)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        leave(_os_message(error), 2 if isinstance(error, WRONG_PATH) else 1)
    except (MemoryError, RuntimeError, ImportError) as error:
        leave(f"{type(error).__name__}: {error}", 1)


def leave(message: str, status: int, label: str = "error: ") -> None:
    """Print at most a screen of the message and exit."""
    if os.environ.get("FLAGFORMER_TRACEBACK"):
        traceback.print_exc()
    lines = message[:MOST_CHARACTERS].splitlines() or ["no reason was given"]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"... and {len(lines) - MOST_LINES + 1} more lines"]
    if label and len(lines) > 1:
        lines = [label.rstrip(), *lines]
        label = ""
    print(label + "\n".join(lines), file=sys.stderr)
    raise SystemExit(status)


def _os_message(error: OSError) -> str:
    reason = error.strerror or str(error)
    path = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and "disk" not in reason.lower():
        reason = f"the disk is full: {reason}"
    return path + reason
