"""Build kinds of ViTs of transformers."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import transformers

GRID = (6, 5)
PATCH = 16
SIZE = {
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "patch_size": PATCH,
    "initializer_range": 0.1,
}
OBLONG = {**SIZE, "image_size": (GRID[0] * PATCH, GRID[1] * PATCH)}
SQUARE = {**SIZE, "image_size": 6 * PATCH}  # whose position table is resized to our grid
INTERPOLATE = {"interpolate_pos_encoding": True}


@dataclass(frozen=True)
class Family:
    """A kind of ViT: its model class, the arguments of its configuration and of a call.

    Attributes:
        model: name of the class.
        options: of its configuration.
        call: arguments of the model's forward beside the images.
        folder: of transformers.models with the class, if transformers itself does not have it.
    """

    model: str
    options: dict[str, Any]
    call: dict[str, Any] = field(default_factory=dict)
    folder: str = ""

    @property
    def place(self) -> Any:
        """The module that has the class."""
        name = f"transformers.models.{self.folder}.modeling_{self.folder}"
        return importlib.import_module(name) if self.folder else transformers

    @property
    def known(self) -> bool:
        """Return whether this release has the class."""
        try:
            return hasattr(self.place, self.model)
        except ImportError:
            return False

    def config(self, **options: Any) -> Any:
        """Return the family's configuration, changed by the options."""
        configs = self.place
        if self.folder:
            configs = importlib.import_module(f"transformers.models.{self.folder}.configuration_{self.folder}")
        name = self.model
        if not hasattr(configs, f"{name}Config"):
            name = name.removesuffix("Model").removesuffix("Backbone").removesuffix("Transformer")
        options = {**self.options, **options}
        fused = "sdpa" if getattr(getattr(self.place, self.model), "_supports_sdpa", True) else "eager"
        attention = options.pop("attn_implementation", fused)
        config = getattr(configs, f"{name}Config")(**options)
        config._attn_implementation = attention
        return config
