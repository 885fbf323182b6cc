"""DeNetDM (NeurIPS 2024): its two stages, their models, and the signs that the branches separate."""
