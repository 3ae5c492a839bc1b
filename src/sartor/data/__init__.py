"""From rows to examples: reads a source, checks every row, renders, tokenizes, decides what is trained, shows it."""
