"""From the store to figures: the table of completions, the headline, comparisons, and the summary."""
