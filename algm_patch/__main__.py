"""``python -m algm_patch``: see `algm_patch.cli.main`."""

from .cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
