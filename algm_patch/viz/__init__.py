"""Pictures of what merges: one figure, arrays, a sheet of many images, a film; and of what tune tried."""

from .figure import contact_sheet, visualize
from .film import animate
from .panels import panels
from .pareto import pareto

__all__ = ["animate", "contact_sheet", "panels", "pareto", "visualize"]
