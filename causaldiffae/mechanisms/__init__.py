"""The parts of causal mechanisms: maps of continuous variables, codes and Gumbel noise of discrete ones."""
