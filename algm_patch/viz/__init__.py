"""Pictures of what merges: one figure, arrays, a sheet of many images, a film; and of what tune tried."""

from .figure import visualize
from .film import animate
from .panels import panels
from .pareto import pareto
from .sheet import contact_sheet

__all__ = ["animate", "contact_sheet", "panels", "pareto", "visualize"]
