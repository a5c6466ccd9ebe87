"""Models' answers to test sets, compared by a judge model, and a judge's ratings of rows."""
