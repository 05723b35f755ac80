"""Measuring: benchmarks, the demonstration, the plan, and the parts of a run's report."""
