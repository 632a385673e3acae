"""Which widths to try next: allocation by knapsack, then refinement. Import what is needed from `search.table`."""
