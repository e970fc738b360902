"""Show what merges in an image, find settings, measure what they save, and list which models can be patched.

    algm-patch show photo.jpg --model vit_base_patch16_dinov3 --out out
    algm-patch tune photos/ --model facebook/dinov2-small --keep 0.98 --out out
    algm-patch bench photo.jpg --model vit_base_patch16_dinov3 --settings out/settings.json
    algm-patch models 'vit_base_*' dinov2

Models are timm's, by name, with weights from the hub or a file; or transformers', by a folder or a name on the hub.
Files are written to --out only. "python -m algm_patch" is the same command.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from .inputs import CommandError
from .options import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 after an error (which is printed), 130 after an interrupt.

    Raises:
        SystemExit: with status 2, if the arguments are not understood.
    """
    options = parse(__doc__, arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = print_warning
            return options.command(options)
    except (CommandError, ImportError, OSError, RuntimeError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line, without the line of code that it comes from."""
    print(f"warning: {message}", file=sys.stderr)
