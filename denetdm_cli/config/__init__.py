"""What a run is made of: the schema, the shipped presets, and how YAML and options become one configuration."""
