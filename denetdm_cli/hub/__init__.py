"""Models from and for other people: published ones, official files, conversion, export, prediction."""
