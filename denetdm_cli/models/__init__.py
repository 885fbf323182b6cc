"""The networks: branches and the product of experts built from them."""
