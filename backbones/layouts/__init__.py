"""How other libraries name the tensors of our tables: a module a library."""
