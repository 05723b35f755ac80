"""Measuring: benchmarks, the demonstration, the plan, and what a run's report is made of."""
