"""Reading a text in parts: decode states, and streams over segments."""
