"""How toxic a model is and what language quality costs: evaluators, rates, agreement, protocols, comparisons."""
