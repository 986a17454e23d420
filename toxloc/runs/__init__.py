"""The full run: localize toxicity, test the result by removing parts, fit methods, judge them, and write a report."""
