"""What measures speed and memory. Figures are ratios of things measured side by side in one run."""
