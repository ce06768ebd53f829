"""Priors over the codes of a tokenizer: their recipes, training, evaluation, and what they make."""
