"""How pictures become a model's input: the rule, its text form, and the configuration files that others write."""
