"""Functions of whole models: build, check, load, train by segments."""
