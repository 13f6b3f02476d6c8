"""Other libraries' names for the tensors of models with heads. No torch but to know which tensors a head has."""
