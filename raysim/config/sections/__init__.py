"""The blocks of a YAML file: a class for each, a docstring for each key. ``config/schema.py`` puts them together."""
