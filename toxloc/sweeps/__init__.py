"""Grids of configurations, resumable, on one machine or many: the plan, its workers, the folder, the summary."""

from .grid import Benchmark, Cell, Grid, Plan, Treatment, grid_of, load_grid
from .runner import sweep
from .summary import Depth, Summary

__all__ = ["Benchmark", "Cell", "Depth", "Grid", "Plan", "Summary", "Treatment", "grid_of", "load_grid", "sweep"]
